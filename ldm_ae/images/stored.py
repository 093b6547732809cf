"""Images as their files would store them, which is what scores compare."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_ae.images.missing import MISSING, known
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.images.uint8 import DATA_RANGE, rounded, to_levels


def has_8_bits(pixels: PixelSpec) -> bool:
    """Return whether the stored values are the levels 0 to 255."""
    return pixels.bits == 8 and set(pixels.low) == {0.0} and set(pixels.high) == {DATA_RANGE}


def as_stored(images: Tensor, pixels: PixelSpec) -> Tensor:
    """Clamp images to [-1, 1] and round them to what a file holds: whole stored values, or any for floating point.

    Args:
        images: (B, C, H, W) in about [-1, 1].
        pixels: Their specification.

    Returns:
        (B, C, H, W) float32 in [-1, 1].
    """
    if has_8_bits(pixels):
        return rounded(images)
    images = images.float().clamp(-1.0, 1.0)
    if pixels.bits == 0:
        return images
    low, high = (images.new_tensor(values).view(-1, 1, 1) for values in (pixels.low, pixels.high))
    half = (high - low) / 2
    return ((((images + 1) * half + low).round() - low) / half - 1).clamp(-1.0, 1.0)


def stored_pair(reconstructions: Tensor, pixel_values: Tensor, pixels: PixelSpec) -> tuple[Tensor, Tensor]:
    """Return both as `as_stored` does; where data is missing in `pixel_values`, both are `MISSING`."""
    pair = as_stored(reconstructions, pixels), as_stored(pixel_values, pixels)
    if pixels.missing is None:
        return pair
    missing = ~known(pixel_values)
    return pair[0].masked_fill(missing, MISSING), pair[1].masked_fill(missing, MISSING)


def score_levels(images: Tensor, pixels: PixelSpec) -> Tensor:
    """Return images, clamped, as float64 levels from 0 to 255, of which 8 bits have whole ones."""
    if has_8_bits(pixels):
        return to_levels(images).double()
    return (images.double().clamp(-1.0, 1.0) + 1.0) * (DATA_RANGE / 2)


def is_plain(pixels: PixelSpec) -> bool:
    """Return whether all channels of images are colours or grey of 8 bits, none of which is ever missing."""
    return pixels.meaning in ("rgb", "grey") and has_8_bits(pixels) and pixels.missing is None


def mean_where(values: Tensor, where: Tensor | None, *, otherwise: float = 0.0) -> Tensor:
    """Return the mean over places of (B, C, h, w), (B, C).

    Args:
        values: The values.
        where: The places that count, (B, C, h, w) or (B, 1, h, w) bool; None for all.
        otherwise: The mean over no places.
    """
    if where is None:
        return values.mean(dim=(2, 3))
    where = where.expand_as(values)
    counts = where.sum(dim=(2, 3))
    means = values.masked_fill(~where, 0.0).sum(dim=(2, 3)) / counts.clamp(min=1)
    return torch.where(counts > 0, means, otherwise)
