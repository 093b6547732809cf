"""Deep-compression autoencoders (DC-AE) under diffusers' keys, without their config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.models.loading.layouts.interface import Contents, Inference, Layout
from ldm_ae.models.loading.scales import UNKNOWN, Scale

_SANA = Scale(factor=0.41407, shift=None, source="published for SANA, whose autoencoder has such a network")
_HEAD_DIM = 32
_RES, _VIT = "ResBlock", "EfficientViTBlock"


class DiffusersDC(Layout):
    """The keys of `diffusers.AutoencoderDC`."""

    keys = "diffusers' keys"
    marks = ("encoder.conv_out.weight", "decoder.conv_in.weight", "decoder.norm_out.weight")
    class_names = ("AutoencoderDC",)

    def recognizes(self, state: Mapping[str, Tensor]) -> bool:
        return any(re.match(r"encoder\.down_blocks\.\d+\.\d+\.(conv2|attn\.to_q)\.weight$", key) for key in state)

    def infer(self, contents: Contents) -> Inference:
        return infer_dc(contents, contents.state)

    def example(self) -> dict[str, dict[str, Tensor]]:
        from ldm_ae.models.adapters.dc import DCAutoencoder

        model = DCAutoencoder(
            block_out_channels=(8, 8, 16), encoder_layers_per_block=(1, 2, 1), decoder_layers_per_block=(1, 1, 1),
            latent_channels=4, attention_levels=(2,), attention_head_dim=8, downsample_block_type="conv",
        )  # fmt: skip
        return {"AutoencoderDC": model.net.state_dict()}


def infer_dc(contents: Contents, state: dict[str, Tensor]) -> Inference:
    """Infer a deep-compression autoencoder from weights under diffusers' keys."""
    own = contents.renamed(state)
    channels = own.width("encoder.conv_out.weight")
    config: dict[str, Any] = {"in_channels": 3, "latent_channels": channels}
    head_dims = {own.axes(key, 4)[1] for key in state if key.endswith(".to_qkv_multiscale.0.proj_out.weight")}
    if len(head_dims) > 1:
        raise UserError(f"{contents.path}: its attention has heads of {sorted(head_dims)} channels; expected one size")
    config["attention_head_dim"] = min(head_dims, default=_HEAD_DIM)
    depth = max(own.numbers(r"encoder\.down_blocks\.(\d+)\.")) + 1  # the first level may have no weights
    levels = {half: _levels(own, half, way, depth) for half, way in (("encoder", "down"), ("decoder", "up"))}
    for half, (widths, layers, types, scales) in levels.items():
        config |= {f"{half}_block_out_channels": widths, f"{half}_layers_per_block": layers,
                   f"{half}_block_types": types, f"{half}_qkv_multiscales": scales}  # fmt: skip
    widths = levels["encoder"][0]
    first = "encoder.conv_in" if levels["encoder"][1][0] else "encoder.conv_in.conv"
    last = "decoder.conv_out" if levels["decoder"][1][0] else "decoder.conv_out.conv"
    down = _resampling(own, r"encoder\.down_blocks\.(\d+)\.\d+\.conv\.weight$", first, widths, step=1)
    up = _resampling(own, r"decoder\.up_blocks\.(\d+)\.\d+\.conv\.weight$", last, levels["decoder"][0], step=0)
    config["downsample_block_type"] = "pixel_unshuffle" if down in (None, 0.25) else "conv"
    config["upsample_block_type"] = "pixel_shuffle" if up in (None, 4.0) else "interpolate"
    normalized = [any(re.match(rf"decoder\.up_blocks\.{i}\..*running_mean$", key) for key in state)
                  for i in range(depth)]  # fmt: skip
    config["decoder_norm_types"] = tuple("batch_norm" if batch else "rms_norm" for batch in normalized)
    config["decoder_act_fns"] = tuple("relu" if batch else "silu" for batch in normalized)
    sana = (channels, depth, config["downsample_block_type"], config["upsample_block_type"]) == (
        32, 6, "conv", "interpolate",
    )  # fmt: skip
    blocks = [", ".join(map(str, levels[half][1])) for half in ("encoder", "decoder")]
    description = (
        f"deep-compression autoencoder (DC-AE), downsample factor {2 ** (depth - 1)}, {channels} latent channels, "
        f"widths {', '.join(map(str, widths))}, blocks per level {blocks[0]} in the encoder and {blocks[1]} in the "
        "decoder"
    )
    heads = "" if head_dims or _VIT not in levels["encoder"][2] else f"heads of {_HEAD_DIM} channels, "
    return Inference(
        class_name="AutoencoderDC", config=config, state=state, description=description,
        assumed=f"{heads}shortcuts at the latents, SiLU, and ReLU beside batch normalization",
        scale=_SANA if sana else UNKNOWN, scale_keys=("scaling_factor",),
    )  # fmt: skip


Levels = tuple[tuple[int, ...], tuple[int, ...], tuple[str, ...], tuple[tuple[int, ...], ...]]


def _levels(own: Contents, half: str, blocks: str, depth: int) -> Levels:
    """Return widths, numbers of blocks, types and kernel sizes of attention of each level of a half."""
    widths, layers, types, scales = list[int](), list[int](), list[str](), list[tuple[int, ...]]()
    for level in range(depth):
        place = rf"{half}\.{blocks}_blocks\.{level}\."
        plain = own.numbers(rf"{place}(\d+)\.conv2\.weight$")
        attention = own.numbers(rf"{place}(\d+)\.attn\.to_q\.weight$")
        if plain and attention:
            raise UserError(
                f"{own.path}: level {level} of the {half} has ResNet blocks and attention; expected one kind of block"
            )
        found = (attention or plain)[:1]
        if not found and level:
            raise UserError(f"{own.path}: level {level} of the {half} has no blocks")
        base = f"{half}.{blocks}_blocks.{level}.{found[0] if found else 0}"
        types.append(_VIT if attention else _RES)
        layers.append(len(attention or plain))
        kernels = own.numbers(rf"{re.escape(base)}\.attn\.to_qkv_multiscale\.(\d+)\.proj_in\.weight$")
        scales.append(tuple(own.axes(f"{base}.attn.to_qkv_multiscale.{i}.proj_in.weight", 4)[-1] for i in kernels))
        if attention:
            widths.append(own.axes(f"{base}.attn.to_q.weight", 2)[1])
        else:
            widths.append(own.width(f"{base}.conv1.weight") if found else 0)
    if not widths[0] and depth > 1:
        widths[0] = max(widths[1] // 2, 1)  # a level without blocks has no layer of this width
    return tuple(widths), tuple(layers), tuple(types), tuple(scales)


def _resampling(own: Contents, pattern: str, outer: str, widths: tuple[int, ...], *, step: int) -> float | None:
    """Return the ratio of a resampling convolution's output channels to those of the level that it leads to; None if
    there is no such convolution.

    Args:
        own: The weights.
        pattern: The keys of the convolutions between levels.
        outer: Name of the first or last convolution, which resamples where the outermost level has no blocks.
        widths: Widths of the levels.
        step: Steps from the level whose number the key has to the level that the convolution leads to.
    """
    for key in own.state:
        if (match := re.match(pattern, key)) and (level := int(match[1]) + step) < len(widths):
            return own.width(key) / widths[level]
    if outer.endswith(".conv"):
        target = widths[1] if step and len(widths) > 1 else 3
        return own.width(f"{outer}.weight") / target
    return None
