"""An autoencoder in a single file of weights, found by names and shapes.

Supported layouts are those of CompVis's latent-diffusion, taming-transformers and their successors (Stable Diffusion,
SD3, FLUX), and of diffusers; bare or below any prefix, alone or in the checkpoint of a whole latent diffusion model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError, printable
from ldm_ae.io.weight_files import read_weight_file
from ldm_ae.models.adapters.kl import KLAutoencoder
from ldm_ae.models.adapters.vq import VQAutoencoder
from ldm_ae.models.interface import Autoencoder
from ldm_ae.models.loading.guesses import seems_to_be
from ldm_ae.models.loading.ldm_keys import from_ldm_state_dict, rename_keys
from ldm_ae.models.loading.scales import Scale, scale_of
from ldm_ae.models.loading.shapes import LDMNetwork, completed, network_of
from ldm_ae.quantizers import VQ, GumbelVQ, Quantizer

Layout = Literal["CompVis", "diffusers"]
BESIDE = (
    "loss.", "model_ema.", "ema.", "discriminator.", "disc.", "perceptual_loss.", "perceptual.", "lpips.", "logvar",
    "quantize.embedding.cluster_size", "quantize.embedding.embed_avg", "quantize.used", "scale_factor",
)  # fmt: skip
"""Prefixes of tensors that training stores beside the network: losses, averages of weights, counts of codes,
the scale of the latents."""
_MARKS = ("encoder.conv_in.weight", "decoder.conv_in.weight", "decoder.conv_out.weight")
_LONGEST_KEY = 200
_LOGITS = "quantize.proj."
"""Prefix of a Gumbel quantizer's logits, the same in both layouts."""
_OTHER_NAMES: dict[Layout, tuple[tuple[str, str], ...]] = {
    # diffusers before 0.17 used these names of attention; newer programs write diffusers' names into CompVis's keys.
    "diffusers": (
        (r"(\.attentions\.\d+)\.query\.", r"\1.to_q."), (r"(\.attentions\.\d+)\.key\.", r"\1.to_k."),
        (r"(\.attentions\.\d+)\.value\.", r"\1.to_v."), (r"(\.attentions\.\d+)\.proj_attn\.", r"\1.to_out.0."),
    ),
    "CompVis": (
        (r"(\.attn(?:_1|\.\d+))\.to_([qkv])\.", r"\1.\2."), (r"(\.attn(?:_1|\.\d+))\.to_out\.0\.", r"\1.proj_out."),
        (r"(\.attn(?:_1|\.\d+))\.group_norm\.", r"\1.norm."),
        (r"^quantize\.embed\.weight$", "quantize.embedding.weight"),  # taming's Gumbel quantizer
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SingleFile:
    """The autoencoder of a file: its weights and the properties found with them."""

    path: Path
    state: dict[str, Tensor]
    """The weights under CompVis's keys without prefix, for either layout of the file."""
    network: LDMNetwork
    layout: Layout
    """Layout of the file's keys."""
    place: str
    """Location of the weights in the file: the opened dictionaries and the prefix; empty if at the top."""
    beside: tuple[str, ...]
    """Other dictionaries of weights, which were not opened."""
    excluded: int
    """Number of tensors that do not belong to the network."""
    scale: Scale

    def lines(self) -> list[str]:
        """Return lines that list the properties found, inferred and assumed."""
        found = [f"{self.layout}'s keys{f' under {self.place}' if self.place else ''}: {self.network.describe()}"]
        if self.beside:
            found.append(f"not used: the other weights of the file, under {', '.join(self.beside)}")
        assumed = "32 groups in each normalization, SiLU, and no tanh after the decoder (tanh_out: false)"
        return [*found, f"assumed, because the weights do not determine it: {assumed}"]


def open_single_file(path: str | Path) -> SingleFile:
    """Find the autoencoder in a file.

    Raises:
        UserError: No such file, or no autoencoder in it; the message guesses at the content.
    """
    path = Path(path)
    file = read_weight_file(path)
    everything = {key.replace("_orig_mod.", ""): value for key, value in file.tensors.items()}  # torch.compile's
    prefix = _find_prefix(everything, path)
    own = {key.removeprefix(prefix): value for key, value in everything.items() if key.startswith(prefix)}
    own = {key: value for key, value in own.items() if not key.startswith(BESIDE)}
    if prefix == "":  # a whole model whose other parts do not belong to the autoencoder
        own = {key: value for key, value in own.items() if not key.startswith(("model.", "cond_stage_model."))}
        own = {key: value for key, value in own.items() if "." in key or value.ndim > 1}
    for key, value in own.items():
        if len(key) > _LONGEST_KEY or value.layout != torch.strided or not value.is_floating_point():
            raise UserError(f"{path}: '{printable(key)}' is not a weight of an autoencoder")
        if value.untyped_storage().nbytes() < value.nbytes:
            raise UserError(f"{path}: '{printable(key)}' declares more numbers than the file holds")
    layout = _layout(own, path)
    state = _in_compvis_names(own, layout, str(path))
    network = network_of(state, str(path))
    gumbel = network.quantization == "gumbel"
    _check_names([key for key in state if not (gumbel and key.startswith(_LOGITS))], str(path))
    place = ".".join([*file.container, *([prefix.rstrip(".")] if prefix else [])])
    return SingleFile(
        path=path, state=completed(state, network), network=network, layout=layout, place=place, beside=file.beside,
        excluded=len(file.tensors) - len(own),
        scale=scale_of(everything, prefix, network, beside=file.scale_factor),
    )  # fmt: skip


def build_autoencoder(file: SingleFile) -> Autoencoder:
    """Build the model with the file's weights, in float32; allocate only after the shapes are known to fit."""
    network, name = file.network, file.path
    shape: dict[str, Any] = {
        "block_out_channels": tuple(network.ch * mult for mult in network.ch_mult),
        "layers_per_block": network.num_res_blocks,
        "latent_channels": network.z_channels,
        "attention_levels": network.attention_levels,
        "mid_block_add_attention": network.middle_attention,
    }
    model: Autoencoder
    with torch.device("meta"):
        if network.n_embed is None:
            model = KLAutoencoder(**shape, use_quant_conv=network.quant_conv)
        else:
            model = VQAutoencoder(quantizer=_quantizer(network, file.layout), **shape)
    logits = {key: value for key, value in file.state.items() if key.startswith(_LOGITS)}
    others = {key: value for key, value in file.state.items() if key not in logits}
    converted = {key: value.float() for key, value in (from_ldm_state_dict(others) | logits).items()}
    if network.quantization == "gumbel":
        converted["quantize.steps"] = torch.zeros((), dtype=torch.int64)  # our own temperature's schedule
    expected = model.net.state_dict()
    for key in sorted(expected.keys() | converted.keys()):
        if key not in converted or key not in expected:
            raise UserError(f"{name} has {'no' if key in expected else 'an unknown'} {_file_name(key, file, expected)}")
        if converted[key].shape != expected[key].shape:
            found, required = tuple(converted[key].shape), tuple(expected[key].shape)
            weight = _file_name(key, file, expected)
            raise UserError(f"{name}: {weight}: the other weights require shape {required}, got {found}")
    model.net.load_state_dict(converted, assign=True)
    scaling: dict[str, Any] = {"scaling_factor": file.scale.factor}
    if network.n_embed is None:
        scaling["shift_factor"] = file.scale.shift
    model.net.register_to_config(**scaling)
    return model


def _find_prefix(everything: Mapping[str, Tensor], path: Path) -> str:
    """Return the prefix of the autoencoder's keys, such as `first_stage_model.`; empty if there is none."""
    counts: dict[str, int] = {}
    for key, value in everything.items():
        for mark in _MARKS:
            prefix = key.removesuffix(mark)
            if prefix != key and (not prefix or prefix.endswith(".")) and value.ndim == 4:
                counts[prefix] = counts.get(prefix, 0) + 1
    found = [prefix for prefix, count in counts.items() if count > 1 and len(prefix) < _LONGEST_KEY]
    found = [prefix for prefix in found if _blocks(everything, prefix)]
    preferred = [prefix for prefix in found if re.search(r"(^|\.)first_stage_model\.(.*\.)?$", prefix)]
    preferred = preferred or [p for p in found if not re.search(r"(^|\.)(cond_stage_model|\w*ema\w*|teacher)\.", p)]
    if len(preferred or found) == 1:
        return (preferred or found)[0]
    if found:
        names = ", ".join(printable(prefix or "the top level", 40) for prefix in sorted(found)[:4])
        raise UserError(f"{path} has {len(found)} autoencoders ({names}); save the one to import as a separate file")
    raise UserError(f"{path} does not hold a KL or VQ autoencoder: it seems to be {seems_to_be(everything)}")


def _blocks(everything: Mapping[str, Tensor], prefix: str) -> bool:
    return any(key.startswith((f"{prefix}encoder.down.", f"{prefix}encoder.down_blocks.")) for key in everything)


def _layout(own: Mapping[str, Tensor], path: Path) -> Layout:
    if any(key.startswith(("encoder.quant_conv.", "bn.")) or ".spatial_norm." in key or ".norm_layer." in key
           for key in own):  # fmt: skip
        raise UserError(f"{path} cannot be imported: it seems to be {seems_to_be(own)}")
    if any(key.startswith("encoder.down_blocks.") for key in own):
        if (path.parent / "config.json").is_file():
            raise UserError(f"{path} belongs to a model folder; give {path.parent}, with its config.json, as MODEL")
        return "diffusers"
    return "CompVis"


def _in_compvis_names(own: Mapping[str, Tensor], layout: Layout, name: str) -> dict[str, Tensor]:
    for pattern, other in _OTHER_NAMES[layout]:
        own = {re.sub(pattern, other, key): value for key, value in own.items()}
    if layout == "CompVis":
        return dict(own)
    try:
        names = rename_keys(own, source=0)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    return {names[key]: value for key, value in own.items()}


def _check_names(keys: Iterable[str], name: str) -> None:
    try:
        rename_keys(keys, source=1)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _quantizer(network: LDMNetwork, layout: Layout) -> Quantizer:
    assert network.n_embed is not None
    if network.quantization == "gumbel":
        return GumbelVQ(network.n_embed, network.embed_dim)
    # CompVis and taming weighted the codebook term with beta where the paper weights the commitment.
    return VQ(network.n_embed, network.embed_dim, legacy=layout == "CompVis")


def _file_name(key: str, file: SingleFile, expected: Mapping[str, Tensor]) -> str:
    """Return the name of a diffusers key in the file's layout."""
    if file.layout == "diffusers" or key.startswith("quantize."):
        return key
    known = [other for other in {*expected, key} if not other.startswith("quantize.")]
    return rename_keys(known, source=0)[key]
