"""Wan's and Qwen-Image's autoencoders under diffusers' keys, without their config.json."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.models.adapters import AUTOENCODERS
from ldm_ae.models.loading.layouts.interface import Contents, Inference, Layout
from ldm_ae.models.loading.scales import Scale

CLASSES = ("AutoencoderKLWan", "AutoencoderKLQwenImage", "AutoencoderKLQwenImage21")
_RGB, _RGBA = 3, 4
_VIDEO = 5
"""Axes of the weight of a convolution over time, height and width."""
_WAN_22_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891, 0.1570,
    -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502, -0.2055, -0.0322,
    0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520,
    0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)  # fmt: skip
_WAN_22_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165,
    0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659, 0.7069, 0.5338, 0.4889, 0.4917,
    0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600,
    0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)  # fmt: skip


class DiffusersWan(Layout):
    """The keys of `diffusers.AutoencoderKLWan`, `AutoencoderKLQwenImage` and `AutoencoderKLQwenImage21`."""

    keys = "diffusers' keys"
    marks = ("encoder.conv_in.weight", "decoder.conv_in.weight", "encoder.norm_out.gamma", "decoder.norm_out.gamma")
    class_names = CLASSES

    def recognizes(self, state: Mapping[str, Tensor]) -> bool:
        first = state.get("encoder.conv_in.weight")
        others = ("encoder.norm_out.gamma", "quant_conv.weight")
        return first is not None and first.ndim == _VIDEO and all(key in state for key in others)

    def infer(self, contents: Contents) -> Inference:
        return infer_wan(contents, contents.state)

    def example(self) -> dict[str, dict[str, Tensor]]:
        from ldm_ae.models.adapters.video import VideoAutoencoder

        config = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 2], "num_res_blocks": 1, "temperal_downsample": [True],
                  "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}  # fmt: skip
        return {"AutoencoderKLWan": VideoAutoencoder(network="AutoencoderKLWan", arguments=config).net.state_dict()}


def infer_wan(contents: Contents, state: dict[str, Tensor]) -> Inference:
    """Infer the autoencoder from weights under diffusers' keys."""
    own = contents.renamed(state)
    base, taken = own.axes("encoder.conv_in.weight", _VIDEO)[:2]
    alpha, patch = _image_channels(own, taken)
    name = contents.class_name or ("AutoencoderKLQwenImage21" if alpha else "AutoencoderKLWan")
    residual = any(key.startswith("encoder.down_blocks.0.resnets.") for key in state)
    widths, blocks, temporal = _nested(own) if residual else _flat(own)
    if any(width % base for width in widths):
        raise UserError(
            f"{contents.path}: widths {list(widths)} after a first convolution of {base} channels have no equivalent "
            "in diffusers"
        )
    channels = own.axes("decoder.conv_in.weight", _VIDEO)[1]
    multiples = [width // base for width in widths]
    decoder_base = own.axes("decoder.conv_out.weight", _VIDEO)[1] // multiples[0]
    mean, std, source = _vectors(name, channels)
    config: dict[str, Any] = {
        "base_dim": base, "z_dim": channels, "dim_mult": multiples, "num_res_blocks": blocks, "attn_scales": [],
        "temperal_downsample": temporal, "latents_mean": mean, "latents_std": std,
    }  # fmt: skip
    factor = 2 ** (len(multiples) - 1) * patch
    if name == "AutoencoderKLQwenImage":
        config["input_channels"] = taken
    else:
        config |= {
            "decoder_base_dim": None if decoder_base == base else decoder_base, "is_residual": residual,
            "in_channels": taken, "out_channels": own.width("decoder.conv_out.weight", _VIDEO),
            "patch_size": None if patch == 1 else patch, "scale_factor_spatial": factor,
            "scale_factor_temporal": 2 ** sum(temporal),
        }  # fmt: skip
    same = "; Qwen-Image's is the same network" if name == "AutoencoderKLWan" and not residual else ""
    return Inference(
        class_name=name, config=config, state=state,
        description=f"{name} (an image is a video of one frame), downsample factor {factor}, {channels} latent "
        f"channels, widths {', '.join(map(str, widths))}, {blocks} blocks per level{same}",
        assumed="", scale=Scale(factor=1.0, shift=None, source=source),
    )  # fmt: skip


def _image_channels(own: Contents, taken: int) -> tuple[bool, int]:
    """Return whether images have an alpha channel, and the side of the patches whose pixels become channels."""
    for channels in (_RGB, _RGBA):
        side = math.isqrt(taken // channels)
        if side and taken == channels * side * side:
            return channels == _RGBA, side
    raise UserError(f"{own.path}: encoder.conv_in.weight is for images of {taken} channels; expected 3 (RGB)")


def _flat(own: Contents) -> tuple[list[int], int, list[bool]]:
    """Return widths, blocks per level and levels that halve time, where the encoder's levels are one list."""
    widths, layers, temporal = list[int](), [0], list[bool]()
    for i in range(own.count(r"encoder\.down_blocks\.(\d+)\.")):
        block = f"encoder.down_blocks.{i}"
        if f"{block}.resample.1.weight" in own.state:
            temporal.append(f"{block}.time_conv.weight" in own.state)
            layers.append(0)
        elif f"{block}.conv1.weight" in own.state:
            if not layers[-1]:
                widths.append(own.width(f"{block}.conv1.weight", _VIDEO))
            layers[-1] += 1
        else:
            raise UserError(f"{own.path}: {block} is neither a residual block nor a resampling; attention in levels is "
                            "not supported")  # fmt: skip
    return widths, _equal(own, layers), temporal


def _nested(own: Contents) -> tuple[list[int], int, list[bool]]:
    """Return the same for residual levels, as in Wan 2.2."""
    levels = own.count(r"encoder\.down_blocks\.(\d+)\.")
    widths = [own.width(f"encoder.down_blocks.{i}.resnets.0.conv1.weight", _VIDEO) for i in range(levels)]
    layers = [own.count(rf"encoder\.down_blocks\.{i}\.resnets\.(\d+)\.") for i in range(levels)]
    temporal = [f"encoder.down_blocks.{i}.downsampler.time_conv.weight" in own.state for i in range(levels - 1)]
    return widths, _equal(own, layers), temporal


def _equal(own: Contents, layers: list[int]) -> int:
    if len(set(layers)) != 1 or not layers[0]:
        raise UserError(f"{own.path}: its levels have {layers} blocks; expected equal numbers")
    return layers[0]


def _vectors(name: str, channels: int) -> tuple[list[float], list[float], str]:
    """Return the published mean and standard deviation of the latents, and their origin in words."""
    defaults = inspect.signature(AUTOENCODERS[name].network_class(name).__init__).parameters
    mean, std = (list(defaults[key].default) for key in ("latents_mean", "latents_std"))
    if len(mean) == channels:
        return mean, std, f"latents_mean and latents_std as published, the defaults of {name} in diffusers"
    if channels == len(_WAN_22_MEAN):
        return list(_WAN_22_MEAN), list(_WAN_22_STD), "latents_mean and latents_std as published for Wan 2.2"
    unknown = "unknown, not measured; `ldm-ae export MODEL OUT --images IMAGES` measures it"
    return [0.0] * channels, [1.0] * channels, unknown
