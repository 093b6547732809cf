"""The baseline of every score: a bicubic thumbnail about as large as the latents, enlarged again."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from ldm_ae.models import Posterior

BASELINE = "bicubic thumbnail with about as many numbers as the latents, upsampled"
BASELINE_OF_CODES = "bicubic thumbnail with about as many bytes as the codes at a fixed length, upsampled"


def bicubic_thumbnail(pixel_values: Tensor, numbers: int) -> tuple[Tensor, tuple[int, int]]:
    """Shrink images to about `numbers` numbers each, and enlarge them again.

    Args:
        pixel_values: (B, C, H, W).
        numbers: Size of the thumbnail: its C h w is the nearest to this number at the image's aspect ratio.

    Returns:
        The enlarged thumbnail (B, C, H, W) and the thumbnail's (h, w), never larger than the image. Both resizes are
        bicubic, the downsampling with antialiasing; the thumbnail is not rounded, as latents are not.
    """
    channels, height, width = pixel_values.shape[1:]
    side = min((numbers / (channels * height * width)) ** 0.5, 1.0)
    small = max(round(height * side), 1), max(round(width * side), 1)
    thumbnail = F.interpolate(pixel_values, size=small, mode="bicubic", antialias=True)
    return F.interpolate(thumbnail, size=(height, width), mode="bicubic"), small


def thumbnail_numbers(posterior: Posterior, latents: Tensor) -> int:
    """Return the number of 8-bit numbers of a thumbnail that is about as large as an image's latents (B, C, h, w): the
    number of latents, but for codes, which are many numbers and few bits, their size in bytes at a fixed length."""
    bits = posterior.rate()
    if bits is None or posterior.indices is None:
        return latents[0].numel()
    return math.ceil(float(bits[0]) / 8)
