"""Multi-scale structural similarity of each image, on 8-bit levels.

`ldm_ae/images/similarity.py` has the formula and its source.
"""

from __future__ import annotations

from torch import Tensor

from ldm_ae.evaluation.metrics._of_pixels import Measure, PixelMetric, measured
from ldm_ae.evaluation.metrics.interface import Needs
from ldm_ae.images.pixels import RGB, PixelSpec
from ldm_ae.images.similarity import SMALLEST_SIDE, channel_multiscale_similarity, multiscale_similarity
from ldm_ae.images.stored import is_plain
from ldm_ae.images.uint8 import to_levels


class MSSSIM(PixelMetric):
    """Mean of the images' MS-SSIM."""

    name = "msssim"
    label = "MS-SSIM"
    direction = "higher"
    explanation = "Structure at five scales, each with half the previous resolution, at most 1; 11×11 Gaussian window."
    decimals = 4
    needs = Needs(side=SMALLEST_SIDE)

    @property
    def measure(self) -> Measure:
        """The formula."""
        return MEASURE

    def per_image(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        """Return (B,) in [0, 1]."""
        return msssim(reconstructions, pixel_values)


def msssim(reconstructions: Tensor, pixel_values: Tensor, pixels: PixelSpec = RGB) -> Tensor:
    """Return the multi-scale structural similarity of each image, in [0, 1].

    Args:
        reconstructions: (B, C, H, W), clamped to [-1, 1] here; H and W at least 176.
        pixel_values: (B, C, H, W) in [-1, 1].
        pixels: Their specification. Of rgba images the result is the mean over backgrounds.

    Returns:
        (B,) float32, higher is better.

    Raises:
        UserError: the images are smaller.
    """
    if not is_plain(pixels):
        return measured(MEASURE, reconstructions, pixel_values, pixels).whole.float()
    return multiscale_similarity(to_levels(reconstructions).double(), to_levels(pixel_values).double()).float()


MEASURE = Measure(channel_multiscale_similarity)
"""MS-SSIM of each channel."""
