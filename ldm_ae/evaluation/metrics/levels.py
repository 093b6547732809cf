"""The 256 levels of 8-bit images, on which every metric is computed, as saved images have them."""

from __future__ import annotations

from torch import Tensor

DATA_RANGE = 255.0
"""Largest level minus smallest of an 8-bit image."""


def to_levels(pixel_values: Tensor) -> Tensor:
    """Pixel values in [-1, 1], any shape, clamped and rounded to float32 levels 0, 1, ... 255."""
    return ((pixel_values.float().clamp(-1.0, 1.0) + 1.0) * (DATA_RANGE / 2)).round()


def from_levels(levels: Tensor) -> Tensor:
    """Levels 0 to 255 -> float32 pixel values in [-1, 1]."""
    return levels.float() / (DATA_RANGE / 2) - 1.0


def rounded(pixel_values: Tensor) -> Tensor:
    """Pixel values clamped to [-1, 1] and rounded to 8 bits, as float32 pixel values; twice gives the same."""
    return from_levels(to_levels(pixel_values))
