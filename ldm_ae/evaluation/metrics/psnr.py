"""Peak signal-to-noise ratio of each image, on 8-bit levels: 10 log10(255² / mean squared error).

Of images with other stored values the peak is the range of each channel, high - low."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_ae.evaluation.metrics._of_pixels import Measure, PixelMetric, measured
from ldm_ae.images.pixels import RGB, PixelSpec
from ldm_ae.images.stored import is_plain, mean_where
from ldm_ae.images.uint8 import DATA_RANGE, to_levels

PSNR_CEILING = 100.0
"""PSNR in dB of equal images, for which it is not finite; no score is higher."""


class PSNR(PixelMetric):
    """Mean of the images' PSNR."""

    name = "psnr"
    label = "PSNR"
    direction = "higher"
    unit = "dB"
    explanation = f"Pixel error on a logarithmic scale, 8-bit; {PSNR_CEILING:.0f} for equal images."
    decimals = 2

    @property
    def measure(self) -> Measure:
        """The formula."""
        return MEASURE

    def per_image(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        """Return (B,) dB."""
        return psnr(reconstructions, pixel_values)


def psnr(reconstructions: Tensor, pixel_values: Tensor, pixels: PixelSpec = RGB) -> Tensor:
    """Return the PSNR of each image in dB, 10 log10(255² / mean squared error), at most `PSNR_CEILING`.

    Args:
        reconstructions: (B, C, H, W), clamped to [-1, 1] here.
        pixel_values: (B, C, H, W) in [-1, 1].
        pixels: Their specification. Of rgba images the result is the mean over backgrounds.

    Returns:
        (B,) float32, higher is better.
    """
    if not is_plain(pixels):
        return measured(MEASURE, reconstructions, pixel_values, pixels).whole.float()
    # Differences of levels are integers, so that the mean of their squares in float64 is the same in any order.
    error = (to_levels(reconstructions) - to_levels(pixel_values)).double().square().mean(dim=(1, 2, 3))
    return _decibels(error).float()


def _decibels(error: Tensor) -> Tensor:
    return (10.0 * torch.log10(DATA_RANGE**2 / error)).clamp(max=PSNR_CEILING)


def _errors(levels: Tensor, reference: Tensor, known: Tensor | None) -> Tensor:
    return mean_where((levels - reference).square(), known)


MEASURE = Measure(_errors, _decibels)
"""The mean squared error of each channel, and its logarithm."""
