"""Latents and moments in eight bits: each channel of each image has 256 levels between its lowest and highest value.

Each image has its own range instead of the shard's or the data set's: a row can be read alone, an outlier affects only
its own image, and an image's result depends on no other image. The range takes eight bytes per channel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ldm_ae.models.stored_rows import ERROR, SCALE

LEVELS = 255


def quantize_uint8(values: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize floats (N, C, h, w) to uint8 of that shape and their scale (N, C, 2) float32: step and lowest value.

    Values that are not finite, or that span more than float32 can, are visible in the scale.
    """
    values = values.float()
    lowest, highest = values.amin(dim=(2, 3)), values.amax(dim=(2, 3))
    step = (highest - lowest) / LEVELS
    places = (values - lowest[..., None, None]) / torch.where(step > 0, step, 1.0)[..., None, None]
    return places.round().clamp(0, LEVELS).to(torch.uint8), torch.stack([step, lowest], dim=-1)


def dequantize_uint8(values: Tensor, scale: Tensor) -> Tensor:
    """Return the inverse, float32: uint8 * step + lowest, at most half a step from the original value."""
    return values.float() * scale[..., 0, None, None] + scale[..., 1, None, None]


def pack(tensors: Mapping[str, Tensor], latents_of: Callable[[Mapping[str, Tensor]], Tensor]) -> dict[str, Tensor]:
    """Return the tensors of some images with latents and moments in eight bits, their scales, and the resulting error.

    Args:
        tensors: Tensors by name, floats; indices are unchanged.
        latents_of: A function that returns the latents (N, C, h, w) that a reader gets from such tensors.

    Returns:
        The tensors, with `squared_error` (N, C) float32, the mean over an image's positions.
    """
    packed: dict[str, Tensor] = {}
    for name, values in tensors.items():
        if values.is_floating_point():
            packed[name], packed[f"{name}{SCALE}"] = quantize_uint8(values)
        else:
            packed[name] = values
    if any(name.endswith(SCALE) for name in packed):
        packed[ERROR] = (latents_of(unpack(packed)) - latents_of(tensors)).square().mean(dim=(2, 3))
    return packed


def unpack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without scales; those that have a scale are floats."""
    return {
        name: dequantize_uint8(values, tensors[f"{name}{SCALE}"]) if f"{name}{SCALE}" in tensors else values
        for name, values in tensors.items()
        if not name.endswith(SCALE)
    }
