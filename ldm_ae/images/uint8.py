"""Between pixel values in [-1, 1] and the 256 levels of images: `level / 127.5 - 1` and back."""

from __future__ import annotations

import torch
from torch import Tensor

DATA_RANGE = 255.0
"""Between the lowest and the highest level."""


def to_levels(pixel_values: Tensor) -> Tensor:
    """Pixel values in [-1, 1], any shape, clamped and rounded to float32 levels 0, 1, ... 255."""
    return ((pixel_values.float().clamp(-1.0, 1.0) + 1.0) * (DATA_RANGE / 2)).round()


def to_uint8(pixel_values: Tensor) -> Tensor:
    """The same as uint8, on the device of `pixel_values`. NaN has no level: check for it before."""
    return to_levels(pixel_values).to(torch.uint8)


def from_levels(levels: Tensor) -> Tensor:
    """Levels 0 to 255, integers or float32 -> float32 pixel values in [-1, 1]."""
    return (levels / (DATA_RANGE / 2)).sub_(1.0)
