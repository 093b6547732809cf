"""The configuration of a convolutional autoencoder, inferred from the shapes of its weights.

The shapes determine its widths, blocks, levels with attention, channels and codes. They do not determine the number of
groups of its normalizations (32 in CompVis's code), its activation (SiLU there), the side in pixels of its training
images, and whether its decoder ends in tanh (`tanh_out`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError, printable
from ldm_ae.models.loading.ldm_keys import CODES, idle_attention

GROUPS = 32
"""Groups of every GroupNorm in CompVis's code and, by default, in diffusers'."""
GUMBEL = "quantize.proj.weight"
"""Key of the logits (K, D, 1, 1) of a Gumbel quantizer."""
Quantization = Literal["none", "nearest", "gumbel"]


@dataclass(frozen=True, kw_only=True)
class LDMNetwork:
    """The network that the shapes of the weights imply, under the names of CompVis's `ddconfig`."""

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attention_levels: tuple[int, ...]
    """Levels with self-attention, where 0 is the full resolution; `attn_resolutions` are their sides."""
    middle_attention: bool
    """Whether the middle has self-attention; with CompVis's `attn_type: none` no part has it."""
    z_channels: int
    embed_dim: int
    double_z: bool
    quant_conv: bool
    """Whether there are 1x1 convolutions beside the latents; the autoencoders of SD3 and FLUX have none."""
    n_embed: int | None
    """Number of codes of a VQ, None for KL."""
    quantization: Quantization

    @property
    def downsample_factor(self) -> int:
        """H / h of the network."""
        return int(2 ** (len(self.ch_mult) - 1))

    def describe(self) -> str:
        """Return one line that describes the inferred network."""
        gumbel = "Gumbel " if self.quantization == "gumbel" else ""
        kind = "KL autoencoder" if self.n_embed is None else f"{gumbel}VQ autoencoder of {self.n_embed} codes"
        levels = ", ".join(map(str, self.attention_levels))
        where = [*(["the middle"] if self.middle_attention else []), *([f"levels {levels}"] if levels else [])]
        return (
            f"{kind}, downsample factor {self.downsample_factor}, {self.embed_dim} latent channels, "
            f"widths {', '.join(str(self.ch * mult) for mult in self.ch_mult)}, "
            f"{self.num_res_blocks} blocks per level, attention in {' and '.join(where) or 'no level'}, "
            f"{'with' if self.quant_conv else 'without'} quant convolutions"
        )


def network_of(state: Mapping[str, Tensor], name: str, *, groups: int = GROUPS) -> LDMNetwork:
    """Infer the network of these weights, which have CompVis's keys.

    Args:
        state: The weights.
        name: The file's name, for messages.
        groups: Groups of every GroupNorm.

    Raises:
        UserError: The first property that no KL or VQ autoencoder of diffusers has.
    """

    def weight(key: str, axes: int = 4) -> Tensor:
        if key not in state or state[key].ndim != axes or state[key].numel() == 0:
            raise UserError(f"{name} is not a KL or VQ autoencoder of CompVis's: it has no {key} of {axes} axes")
        return state[key]

    def count(pattern: str) -> int:
        found = {int(match[1]) for key in state if (match := re.match(pattern, key))}
        if not found or found != set(range(len(found))):
            raise UserError(f"{name} is not an autoencoder of CompVis's: the numbers in its keys have gaps")
        return len(found)

    if linear := [key for key in state if key.endswith(".to_qkv.weight")]:
        raise UserError(f"{name} has linear attention ({linear[0]}; attn_type linear), which diffusers does not have")
    for key, axis in (("encoder.conv_in.weight", 1), ("decoder.conv_out.weight", 0)):
        if (found := weight(key).shape[axis]) != 3:
            raise UserError(f"{name}: {key} is for images of {found} channels; expected 3 (RGB)")
    ch = weight("encoder.conv_in.weight").shape[0]
    levels = count(r"encoder\.down\.(\d+)\.")
    blocks = count(r"encoder\.down\.0\.block\.(\d+)\.")
    widths = [weight(f"encoder.down.{i}.block.0.conv1.weight").shape[0] for i in range(levels)]
    if any(width % ch for width in widths) or widths[0] != ch:
        raise UserError(f"{name}: widths {widths} after a first convolution of {ch} have no equivalent in diffusers")
    if type(groups) is not int or groups < 1:
        raise UserError(f"norm_num_groups must be a whole number above 0, got {printable(groups)}")
    if bad := [width for width in widths if width % groups]:
        raise UserError(
            f"{name}: a width of {bad[0]} is not divisible into {groups} groups; the number of groups is not in the "
            "weights: give the network's config.json, or a JSON file with norm_num_groups, as --config"
        )
    z_channels = weight("decoder.conv_in.weight").shape[1]
    convolutions = [f"{key}.weight" in state for key in ("quant_conv", "post_quant_conv")]
    codes = weight(CODES, axes=2).shape if CODES in state else None
    double_z = weight("encoder.conv_out.weight").shape[0] == 2 * z_channels
    if codes is None and not double_z:
        raise UserError(f"{name} has neither codes ({CODES}) nor an encoder of means and log-variances")
    if codes is not None and not all(convolutions):
        raise UserError(f"{name} has codes but no {'post_' if convolutions[0] else ''}quant_conv")
    embed_dim = weight("post_quant_conv.weight").shape[1] if convolutions[1] else z_channels
    gumbel = codes is not None and GUMBEL in state and state[GUMBEL].shape == (*codes, 1, 1)
    if codes is None and embed_dim != z_channels:
        raise UserError(
            f"{name}: its quant convolutions map {2 * z_channels} channels to {2 * embed_dim} and "
            f"{embed_dim} to {z_channels} (embed_dim {embed_dim}, z_channels {z_channels}); those of diffusers' "
            "AutoencoderKL keep the number of channels, and it cannot be opened"
        )
    return LDMNetwork(
        ch=ch,
        ch_mult=tuple(width // ch for width in widths),
        num_res_blocks=blocks,
        attention_levels=tuple(i for i in range(levels) if f"encoder.down.{i}.attn.0.norm.weight" in state),
        middle_attention=any(f"{half}.mid.attn_1.norm.weight" in state for half in ("encoder", "decoder")),
        z_channels=z_channels,
        embed_dim=embed_dim,
        double_z=double_z and codes is None,
        quant_conv=any(convolutions),
        n_embed=None if codes is None else codes[0],
        quantization="none" if codes is None else "gumbel" if gumbel else "nearest",
    )


def completed(state: Mapping[str, Tensor], network: LDMNetwork) -> dict[str, Tensor]:
    """Return `state` with the weights that diffusers' class requires and the network lacks; outputs do not change.

    - For attention or a quant convolution in only one half: idle attention, or an identity, in the other half.
    - For levels that resample without a convolution (`resamp_with_conv: false`): convolutions that average 2x2 pixels,
      and identities after the enlargement.
    """
    whole = dict(state)
    if network.middle_attention:
        for half in ("encoder", "decoder"):
            like = state.get(f"{half}.mid.block_1.norm1.weight")
            if like is not None and f"{half}.mid.attn_1.norm.weight" not in state:
                whole |= {f"{half}.mid.attn_1.{name}": value for name, value in idle_attention(like).items()}
    if network.quant_conv:
        for key, width in (("quant_conv", 2 * network.z_channels), ("post_quant_conv", network.z_channels)):
            if f"{key}.weight" not in state:
                whole[f"{key}.weight"] = torch.eye(width)[:, :, None, None]
                whole[f"{key}.bias"] = torch.zeros(width)
    if not any(re.search(r"\.(?:downsample|upsample)\.", key) for key in state):
        for i, mult in enumerate(network.ch_mult):
            width = network.ch * mult
            resampling = [("encoder", "down", "downsample")] if i < len(network.ch_mult) - 1 else []
            resampling += [("decoder", "up", "upsample")] if i > 0 else []
            for half, levels, layer in resampling:
                kernel = torch.zeros(width, width, 3, 3)
                diagonal = torch.arange(width)
                if layer == "downsample":  # diffusers pads right and below by one, and uses every second position
                    kernel[diagonal, diagonal, :2, :2] = 0.25
                else:
                    kernel[diagonal, diagonal, 1, 1] = 1.0
                whole[f"{half}.{levels}.{i}.{layer}.conv.weight"] = kernel
                whole[f"{half}.{levels}.{i}.{layer}.conv.bias"] = torch.zeros(width)
    return whole
