"""Structural similarity of each image, on 8-bit levels.

`ldm_ae/images/similarity.py` has the formula and its source. It equals scikit-image's `structural_similarity` with
gaussian_weights=True, sigma=1.5, use_sample_covariance=False.
"""

from __future__ import annotations

from torch import Tensor

from ldm_ae.evaluation.metrics._of_pixels import Measure, PixelMetric, measured
from ldm_ae.evaluation.metrics.interface import Needs
from ldm_ae.images.pixels import RGB, PixelSpec
from ldm_ae.images.similarity import SSIM_WINDOW, channel_similarity, similarity
from ldm_ae.images.stored import is_plain
from ldm_ae.images.uint8 import to_levels


class SSIM(PixelMetric):
    """Mean of the images' SSIM."""

    name = "ssim"
    label = "SSIM"
    direction = "higher"
    explanation = "Local structure, at most 1; 11×11 Gaussian window, data range 255."
    needs = Needs(side=SSIM_WINDOW)

    @property
    def measure(self) -> Measure:
        """The formula."""
        return MEASURE

    def per_image(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        """Return (B,), at most 1."""
        return ssim(reconstructions, pixel_values)


def ssim(reconstructions: Tensor, pixel_values: Tensor, pixels: PixelSpec = RGB) -> Tensor:
    """Return the structural similarity of each image, at most 1.

    Args:
        reconstructions: (B, C, H, W), clamped to [-1, 1] here; H and W at least 11, the window's side.
        pixel_values: (B, C, H, W) in [-1, 1].
        pixels: Their specification. Of rgba images the result is the mean over backgrounds.

    Returns:
        (B,) float32, higher is better.

    Raises:
        UserError: the images are smaller than the window.
    """
    if not is_plain(pixels):
        return measured(MEASURE, reconstructions, pixel_values, pixels).whole.float()
    return similarity(to_levels(reconstructions).double(), to_levels(pixel_values).double()).float()


MEASURE = Measure(channel_similarity)
"""SSIM of each channel."""
