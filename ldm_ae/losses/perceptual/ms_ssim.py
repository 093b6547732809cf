"""1 - MS-SSIM; `ldm_ae/images/similarity.py` has the formula and its source.

As a loss: Zhao et al., Loss Functions for Image Restoration with Neural Networks, arXiv 1511.08861. They multiply maps
at the scale of the pixels; here, as in the metric, means of whole images are multiplied.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_ae.images.similarity import multiscale_similarity
from ldm_ae.losses.perceptual.interface import PerceptualLoss
from ldm_ae.losses.perceptual.ssim import as_levels

FLOOR = 1e-3
"""Least mean of a scale: below it the similarity is constant, above it the gradient is bounded."""


class MSSSIMDistance(PerceptualLoss):
    """1 - MS-SSIM, in [0, 1], in float32, of images of at least 176x176 pixels.

    The formula is that of the metric, a mean over the channels, of any number. Reconstructions are neither clamped nor
    rounded: each pixel has a gradient.
    """

    pixels = None
    short_names = ("ms-ssim", "msssim")

    def __init__(self) -> None:
        super().__init__("ms_ssim_distance")

    def forward(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        with torch.autocast(pixel_values.device.type, enabled=False):
            pair = as_levels(reconstructions), as_levels(pixel_values)
            distances = 1 - multiscale_similarity(*pair, floor=FLOOR)
        return distances.clamp(min=0.0)  # of equal images rounding may leave less
