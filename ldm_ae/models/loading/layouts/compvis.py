"""KL and VQ autoencoders under the keys of CompVis's latent-diffusion and taming-transformers: Stable Diffusion, SDXL,
SD3, FLUX.1."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.models.adapters.blocks import block_types
from ldm_ae.models.loading.layouts.interface import Contents, Inference, Layout
from ldm_ae.models.loading.ldm_keys import from_ldm_state_dict, rename_keys
from ldm_ae.models.loading.scales import scale_of
from ldm_ae.models.loading.shapes import GROUPS, LDMNetwork, completed, network_of
from ldm_ae.quantizers import GumbelVQ, describe_quantizer

MARKS = ("encoder.conv_in.weight", "decoder.conv_in.weight", "decoder.conv_out.weight")
"""Keys that CompVis's convolutional autoencoders and diffusers' have in common."""
UNLIKE = ("encoder.quant_conv.", "decoder.post_quant_conv.", "bn.", "decoder.condition_encoder.")
"""Prefixes of keys that only other classes of convolutional autoencoders have."""
_LOGITS = "quantize.proj."
"""Prefix of a Gumbel quantizer's logits, the same in CompVis's keys and diffusers'."""
_ATTENTION = (
    # Newer programs write diffusers' names of attention into CompVis's keys.
    (r"(\.attn(?:_1|\.\d+))\.to_([qkv])\.", r"\1.\2."), (r"(\.attn(?:_1|\.\d+))\.to_out\.0\.", r"\1.proj_out."),
    (r"(\.attn(?:_1|\.\d+))\.group_norm\.", r"\1.norm."),
    (r"^quantize\.embed\.weight$", "quantize.embedding.weight"),  # taming's Gumbel quantizer
)  # fmt: skip


class CompVis(Layout):
    """The keys of latent-diffusion (arXiv 2112.10752) and taming-transformers (arXiv 2012.09841)."""

    keys = "CompVis's keys"
    marks = MARKS
    class_names = ("AutoencoderKL", "VQModel", "QuantizedAutoencoder")

    def recognizes(self, state: Mapping[str, Tensor]) -> bool:
        return is_convolutional(state, "encoder.down.")

    def infer(self, contents: Contents) -> Inference:
        state = dict(contents.state)
        for pattern, other in _ATTENTION:
            state = {re.sub(pattern, other, key): value for key, value in state.items()}
        return infer_from_compvis(contents, state, legacy=True)

    def example(self) -> dict[str, dict[str, Tensor]]:
        from ldm_ae.models.adapters.kl import KLAutoencoder

        model = KLAutoencoder(block_out_channels=(32, 32), layers_per_block=1, mid_block_add_attention=False)
        state = model.net.state_dict()
        names = rename_keys(state, source=0)
        return {"AutoencoderKL": {names[key]: value for key, value in state.items()}}

    def original_name(self, key: str, keys: Iterable[str]) -> str:
        if key.startswith("quantize."):
            return key
        return rename_keys([other for other in {*keys, key} if not other.startswith("quantize.")], source=0)[key]


def is_convolutional(state: Mapping[str, Tensor], levels: str) -> bool:
    """Return whether these are the keys of a KL or VQ autoencoder of images, with levels under the prefix `levels`."""
    if any(key.startswith(UNLIKE) or ".spatial_norm." in key or ".norm_layer." in key for key in state):
        return False
    flat = all(state[mark].ndim == 4 for mark in MARKS if mark in state)
    return flat and any(key.startswith(levels) for key in state)


def infer_from_compvis(contents: Contents, state: dict[str, Tensor], *, legacy: bool) -> Inference:
    """Infer a KL or VQ autoencoder from weights under CompVis's keys.

    Args:
        contents: The file.
        state: The weights.
        legacy: Whether CompVis or taming wrote it: their VQ weights the codebook term with beta where the paper weights
            the commitment.
    """
    name, given = str(contents.path), contents.given
    network = network_of(state, name, groups=given.get("norm_num_groups", GROUPS))
    gumbel = network.quantization == "gumbel"
    logits = {key: value for key, value in state.items() if gumbel and key.startswith(_LOGITS)}
    try:
        rename_keys([key for key in state if key not in logits], source=1)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    state = completed(state, network)
    converted = from_ldm_state_dict({key: value for key, value in state.items() if key not in logits}) | logits
    config = convolutional_config(network, given)
    keys: tuple[str, ...] = ("scaling_factor", "shift_factor") if network.n_embed is None else ("scaling_factor",)
    if network.n_embed is None:
        class_name = "AutoencoderKL"
        config |= {"use_quant_conv": network.quant_conv, "use_post_quant_conv": network.quant_conv}
    elif gumbel:
        class_name = "QuantizedAutoencoder"
        config |= {"quantizer": describe_quantizer(GumbelVQ(network.n_embed, network.embed_dim))}
        converted["quantize.steps"] = torch.zeros((), dtype=torch.int64)  # our own temperature's schedule
    else:
        class_name = "VQModel"
        config |= {"num_vq_embeddings": network.n_embed, "vq_embed_dim": network.embed_dim}
        config |= {"legacy_beta": True} if legacy else {}
    scale = scale_of(
        contents.everything, contents.prefix, network, beside=contents.scale_factor, compvis=legacy
    )  # fmt: skip
    return Inference(
        class_name=class_name, config=config, state=converted, description=network.describe(), assumed=assumed(given),
        scale=scale, scale_keys=keys, network=network,
    )  # fmt: skip


def convolutional_config(network: LDMNetwork, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that diffusers' convolutional autoencoders have in common."""
    widths = tuple(network.ch * mult for mult in network.ch_mult)
    groups = given.get("norm_num_groups", GROUPS)
    blocks = block_types(widths, attention_levels=network.attention_levels, norm_num_groups=groups)
    return {
        "in_channels": 3, "out_channels": 3, "down_block_types": blocks.down, "up_block_types": blocks.up,
        "block_out_channels": widths, "layers_per_block": network.num_res_blocks, "act_fn": "silu",
        "latent_channels": network.z_channels, "norm_num_groups": groups, "sample_size": 256,
        "mid_block_add_attention": network.middle_attention,
    }  # fmt: skip


def assumed(given: Mapping[str, Any]) -> str:
    """Return the assumptions on a convolutional autoencoder."""
    parts = [
        *([] if "norm_num_groups" in given else [f"{GROUPS} groups in each normalization"]),
        *([] if "act_fn" in given else ["SiLU"]), "no tanh after the decoder (tanh_out: false)",
    ]  # fmt: skip
    return f"{', '.join(parts[:-1])}, and {parts[-1]}" if len(parts) > 1 else parts[0]
