"""The keys of CompVis's latent-diffusion (arXiv 2112.10752) and taming-transformers (arXiv 2012.09841), and diffusers'.

The same network has other names: `encoder.down.{level}.block.{i}`, `encoder.mid.block_1`, `decoder.up.{level}` with
level 0 the highest resolution (diffusers counts the decoder's levels from the lowest), `nin_shortcut` for the 1x1
convolution beside a ResNet block, and attention as 1x1 convolutions (C, C, 1, 1) where diffusers has linear layers
(C, C).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor

from ldm_ae.core.errors import UserError, printable

CODES = "quantize.embedding.weight"
"""Key of the codes (K, D) of a VQ."""

# (diffusers, CompVis) names: of whole blocks, where {i} is the level and {j} the block in it, ...
_BLOCKS = (
    ("encoder.down_blocks.{i}.resnets.{j}", "encoder.down.{i}.block.{j}"),
    ("encoder.down_blocks.{i}.attentions.{j}", "encoder.down.{i}.attn.{j}"),
    ("encoder.down_blocks.{i}.downsamplers.0", "encoder.down.{i}.downsample"),
    ("decoder.up_blocks.{i}.resnets.{j}", "decoder.up.{i}.block.{j}"),
    ("decoder.up_blocks.{i}.attentions.{j}", "decoder.up.{i}.attn.{j}"),
    ("decoder.up_blocks.{i}.upsamplers.0", "decoder.up.{i}.upsample"),
    *(
        (f"{half}.mid_block.{theirs}", f"{half}.mid.{ours}")
        for half in ("encoder", "decoder")
        for theirs, ours in (("resnets.0", "block_1"), ("attentions.0", "attn_1"), ("resnets.1", "block_2"))
    ),
)
# ... of the layers inside a block, ...
_LAYERS = (
    ("norm1", "norm1"), ("conv1", "conv1"), ("norm2", "norm2"), ("conv2", "conv2"), ("conv_shortcut", "nin_shortcut"),
    ("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"), ("conv", "conv"),
)  # fmt: skip
# ... and of the layers outside any block.
_OUTER = (
    ("encoder.conv_in", "encoder.conv_in"),
    ("encoder.conv_norm_out", "encoder.norm_out"),
    ("encoder.conv_out", "encoder.conv_out"),
    ("decoder.conv_in", "decoder.conv_in"),
    ("decoder.conv_norm_out", "decoder.norm_out"),
    ("decoder.conv_out", "decoder.conv_out"),
    ("quant_conv", "quant_conv"),
    ("post_quant_conv", "post_quant_conv"),
    ("quantize.embedding", "quantize.embedding"),
)
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
"""Attention's layers under diffusers' names. In CompVis's code they are 1x1 convolutions."""


def from_ldm_state_dict(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of a CompVis autoencoder (without its loss) under the keys of `AutoencoderKL` or `VQModel`.

    Raises:
        UserError: A key that such a network does not have.
    """
    names = rename_keys(state, source=1)
    return {
        names[key]: (value[:, :, 0, 0] if is_projection(names[key]) and value.ndim == 4 else value)
        for key, value in state.items()
    }


def rename_keys(keys: Iterable[str], *, source: int) -> dict[str, str]:
    """Map each key to its name in the other layout.

    Args:
        keys: All keys of a network: the decoder's levels are counted from the last one.
        source: 0 for diffusers' names, 1 for CompVis's.

    Raises:
        UserError: A key that such a network does not have.
    """
    target = 1 - source
    outer = {pair[source]: pair[target] for pair in _OUTER}
    layers = {pair[source]: pair[target] for pair in _LAYERS}
    blocks = [
        (re.compile(re.escape(pair[source]).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{j\}", r"(?P<j>\d+)")), pair)
        for pair in _BLOCKS
    ]
    keys = list(keys)
    ups = [int(found[1]) for key in keys if (found := re.match(r"decoder\.up(?:_blocks)?\.(\d+)\.", key))]
    last = max(ups, default=0)

    def rename(key: str) -> str:
        layer, _, kind = key.rpartition(".")
        if layer in outer:
            return f"{outer[layer]}.{kind}"
        for pattern, pair in blocks:
            if (found := pattern.match(layer)) and (inner := layer[found.end() + 1 :]) in layers:
                place = found.groupdict()
                if pair[0].startswith("decoder.up_blocks"):
                    place["i"] = str(last - int(place["i"]))  # counted from the other end
                return f"{pair[target].format(**place)}.{layers[inner]}.{kind}"
        raise UserError(
            f"'{printable(key)}' is not a key of such an autoencoder in {('diffusers', 'CompVis')[source]}'s names"
        )

    return {key: rename(key) for key in keys}


def is_projection(diffusers_key: str) -> bool:
    """Return whether the key is the weight of an attention layer."""
    layer, _, kind = diffusers_key.rpartition(".")
    return kind == "weight" and layer.endswith(tuple(f".{name}" for name in PROJECTIONS))


def idle_attention(norm: Tensor) -> dict[str, Tensor]:
    """Return a CompVis attention block of zeros beside `norm` (C,), which adds nothing to its input."""
    width = norm.shape[0]
    state = {"norm.weight": norm.new_ones(width), "norm.bias": norm.new_zeros(width)}
    for name in ("q", "k", "v", "proj_out"):
        state |= {f"{name}.weight": norm.new_zeros(width, width, 1, 1), f"{name}.bias": norm.new_zeros(width)}
    return state
