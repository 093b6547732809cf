"""Multi-scale structural similarity of each image, on 8-bit levels.

`ldm_ae/images/similarity.py` has the formula and its source.
"""

from __future__ import annotations

from torch import Tensor

from ldm_ae.evaluation.metrics.interface import ImageMetric, Needs
from ldm_ae.images.similarity import SMALLEST_SIDE, multiscale_similarity
from ldm_ae.images.uint8 import to_levels


class MSSSIM(ImageMetric):
    """Mean of the images' MS-SSIM."""

    name = "msssim"
    label = "MS-SSIM"
    direction = "higher"
    explanation = "Structure at five scales, each with half the previous resolution, at most 1; 11×11 Gaussian window."
    decimals = 4
    needs = Needs(side=SMALLEST_SIDE)

    def per_image(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        """Return (B,) in [0, 1]."""
        return msssim(reconstructions, pixel_values)


def msssim(reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
    """Return the multi-scale structural similarity of each image, in [0, 1].

    Args:
        reconstructions: (B, 3, H, W), clamped to [-1, 1] here; H and W at least 176.
        pixel_values: (B, 3, H, W) in [-1, 1].

    Returns:
        (B,) float32, higher is better.

    Raises:
        UserError: the images are smaller.
    """
    return multiscale_similarity(to_levels(reconstructions).double(), to_levels(pixel_values).double()).float()
