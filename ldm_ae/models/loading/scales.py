"""The factor by which a published latent diffusion model multiplies its latents, as stated or implied by a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.models.loading.shapes import LDMNetwork

FAMILIES: dict[str, tuple[float, float | None]] = {
    "sd": (0.18215, None), "sdxl": (0.13025, None), "sd3": (1.5305, 0.0609), "flux": (0.3611, 0.1159),
}  # fmt: skip
"""`scaling_factor` and `shift_factor` of Stable Diffusion 1 and 2, SDXL, SD3 and FLUX.1, as in diffusers' folders."""
NETWORKS = {"sd": (4, True), "sdxl": (4, True), "sd3": (16, False), "flux": (16, False)}
"""Number of latent channels of each family's autoencoder, and whether it has quant convolutions."""
DOWNSAMPLE_FACTOR = 8
"""Downsample factor of the autoencoders of all families."""
_SAME_NETWORK = {"sd": "sdxl", "flux": "sd3"}
"""For families that a file of the autoencoder alone is assumed to be of: the other family with the same network."""
NAMES = {"sd": "Stable Diffusion 1 and 2", "sdxl": "SDXL", "sd3": "Stable Diffusion 3", "flux": "FLUX.1"}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """`scaling_factor` and `shift_factor`, and their origin."""

    factor: float
    shift: float | None
    source: str
    """The origin in words, for a message."""
    known: bool = True
    """False where no source states the scale and the factor is 1."""
    in_file: bool = False
    """Whether the file holds the factor as a tensor."""


UNKNOWN = Scale(
    factor=1.0, shift=None, known=False,
    source="unknown, not measured; `ldm-ae export MODEL OUT --images IMAGES` measures it",
)  # fmt: skip


def scale_of_family(family: str) -> Scale:
    """Return the published scale of one of `FAMILIES`; UserError for another name."""
    if family not in FAMILIES:
        raise UserError(f"'{family}' is not a family of models; expected one of {', '.join(FAMILIES)}")
    factor, shift = FAMILIES[family]
    return Scale(factor=factor, shift=shift, source=f"published for {NAMES[family]}")


def check_family(family: str, network: LDMNetwork) -> list[str]:
    """Return notes on a network that can be the named family's but differs from it in details.

    Raises:
        UserError: It is a VQ, or has another number of latent channels or another downsample factor.
    """
    channels, convolutions = NETWORKS[family]
    like = [name for name, (number, _) in NETWORKS.items() if number == network.embed_dim]
    if network.embed_dim != channels:
        fix = f"give {' or '.join(like)}, or remove --family" if like else "remove --family"
        raise UserError(
            f"--family {family} does not fit the file: expected {channels} latent channels, which the autoencoder of "
            f"{NAMES[family]} has, got {network.embed_dim}; {fix}"
        )
    if network.downsample_factor != DOWNSAMPLE_FACTOR:
        raise UserError(
            f"--family {family} does not fit the file: expected the downsample factor {DOWNSAMPLE_FACTOR}, which the "
            f"autoencoder of {NAMES[family]} has, got {network.downsample_factor}; remove --family"
        )
    if network.n_embed is not None:
        raise UserError(
            f"--family {family} does not fit the file: expected a KL autoencoder, which that of {NAMES[family]} is, "
            "got a VQ; remove --family"
        )
    if network.quant_conv != convolutions:
        words = ("no ", "")
        return [
            f"--family {family}: the autoencoder of {NAMES[family]} has {words[convolutions]}quant convolutions, and "
            f"this one has {words[network.quant_conv]}quant convolutions; it may belong to another model"
        ]
    return []


def scale_of(
    everything: Mapping[str, Tensor],
    prefix: str,
    network: LDMNetwork,
    *,
    beside: Tensor | None = None,
    compvis: bool = True,
) -> Scale:
    """Return the scale of the latents, from a tensor of the file or by the convention of models with this layout.

    Args:
        everything: All tensors of the file.
        prefix: Prefix of the autoencoder's keys.
        network: The autoencoder's network.
        beside: A `scale_factor` of the file that is not one of these tensors.
        compvis: Whether the file has CompVis's keys. FLUX.1's `ae.safetensors` has; a file of the same network alone
            with diffusers' keys may as well be SD3's.

    Raises:
        UserError: A `scale_factor` that is not a number above 0.
    """
    parts = prefix.removesuffix("first_stage_model.").split(".")[:-1]
    levels = [".".join([*parts[:depth], "scale_factor"]) for depth in range(len(parts), -1, -1)]  # the nearest first
    if (tensor := next((everything[key] for key in levels if key in everything), beside)) is not None:
        if tensor.numel() != 1 or not 0.0 < (factor := float(tensor)) < float("inf"):
            got = f"{float(tensor):g}" if tensor.numel() == 1 else f"a tensor {tuple(tensor.shape)}"
            raise UserError(f"the file's scale_factor must be one number above 0, got {got}")
        return Scale(factor=factor, shift=None, source="the file's scale_factor, measured in training", in_file=True)
    if network.n_embed is not None or network.downsample_factor != DOWNSAMPLE_FACTOR:
        return UNKNOWN
    family = _family(everything, network, compvis=compvis)
    if family is None:
        return UNKNOWN
    bare = not any(".diffusion_model." in key for key in everything)
    scale = scale_of_family(family)
    if not bare:
        return scale
    other = _SAME_NETWORK[family]
    factor, shift = FAMILIES[other]
    same = f"{factor}" if shift is None else f"{factor} and shift {shift}"
    words = f" alone, {NAMES[family]}'s; {NAMES[other]}'s weights look the same and have the factor {same} (--family "
    words += f"{other} of ldm-ae import)"
    return Scale(factor=scale.factor, shift=scale.shift, source=f"the convention for this network{words}")


def _family(everything: Mapping[str, Tensor], network: LDMNetwork, *, compvis: bool) -> str | None:
    whole = any(".diffusion_model." in key for key in everything)
    shape = (network.ch, network.ch_mult, network.num_res_blocks, network.attention_levels)
    published = shape == (128, (1, 2, 4, 4), 2, ())
    if network.z_channels == 4 and network.quant_conv:
        if not whole:
            return "sd" if published else None
        if any(key.startswith("conditioner.embedders.") for key in everything):
            return "sdxl"
        widths = {value.shape[1] for key, value in everything.items()
                  if key.endswith(".attn2.to_k.weight") and ".diffusion_model." in key and value.ndim == 2}  # fmt: skip
        return "sdxl" if 2048 in widths else "sd" if widths & {768, 1024} else None
    if network.z_channels == 16 and not network.quant_conv:
        if not whole and published and compvis:
            return "flux"
        if any(".diffusion_model.joint_blocks." in key for key in everything):
            return "sd3"
        if any(".diffusion_model.double_blocks." in key for key in everything):
            return "flux"
    return None
