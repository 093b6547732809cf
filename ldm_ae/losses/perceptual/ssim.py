"""1 - SSIM; `ldm_ae/images/similarity.py` has the formula and its source."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_ae.images.similarity import similarity
from ldm_ae.images.uint8 import DATA_RANGE
from ldm_ae.losses.perceptual.interface import PerceptualLoss


class SSIMDistance(PerceptualLoss):
    """1 - SSIM, in [0, 2], in float32.

    The formula is that of the metric, a mean over the channels, of any number. Reconstructions are neither clamped nor
    rounded: each pixel has a gradient.
    """

    pixels = None
    short_names = ("ssim",)

    def __init__(self) -> None:
        super().__init__("ssim_distance")

    def forward(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        with torch.autocast(pixel_values.device.type, enabled=False):
            distances = 1 - similarity(as_levels(reconstructions), as_levels(pixel_values))
        return distances.clamp(min=0.0)  # of equal images rounding may leave less


def as_levels(pixel_values: Tensor) -> Tensor:
    """Return pixel values in [-1, 1] as float32 levels from 0 to 255, neither clamped nor rounded."""
    return (pixel_values.float() + 1) * (DATA_RANGE / 2)
