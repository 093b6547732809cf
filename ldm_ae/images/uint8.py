"""Conversion between pixel values in [-1, 1] and the 256 levels of images: `level / 127.5 - 1` and back."""

from __future__ import annotations

import torch
from torch import Tensor

DATA_RANGE = 255.0
"""Difference between the highest and the lowest level."""


def to_levels(pixel_values: Tensor) -> Tensor:
    """Convert pixel values in [-1, 1], any shape, to float32 levels 0, 1, ... 255, clamped and rounded."""
    return ((pixel_values.float().clamp(-1.0, 1.0) + 1.0) * (DATA_RANGE / 2)).round()


def to_uint8(pixel_values: Tensor) -> Tensor:
    """Convert pixel values to uint8 levels, on the same device. NaN has no level: check for it before the call."""
    return to_levels(pixel_values).to(torch.uint8)


def from_levels(levels: Tensor) -> Tensor:
    """Convert levels 0 to 255, integers or float32, to float32 pixel values in [-1, 1]."""
    return (levels / (DATA_RANGE / 2)).sub_(1.0)


def rounded(pixel_values: Tensor) -> Tensor:
    """Clamp pixel values to [-1, 1] and round them to 8 bits, as float32 pixel values; the operation is idempotent."""
    return from_levels(to_levels(pixel_values))
