"""Structural similarity of each image, on 8-bit levels.

Source: equation 13 of Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, IEEE
Transactions on Image Processing 13(4), 2004, with its 11x11 Gaussian window of sigma 1.5, K1 = 0.01 and K2 = 0.03,
averaged over the positions at which the whole window lies in the image, and over the three colour channels. It equals
scikit-image's `structural_similarity` with gaussian_weights=True, sigma=1.5, use_sample_covariance=False.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.evaluation.metrics.interface import ImageMetric, Needs
from ldm_ae.images.uint8 import DATA_RANGE, to_levels

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
"""Side of SSIM's window in pixels, and the standard deviation of its Gaussian weights."""
SSIM_CONSTANTS = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2
"""C1 and C2, which keep the quotients of luminance and of contrast away from 0 / 0."""


class SSIM(ImageMetric):
    """Mean of the images' SSIM."""

    name = "ssim"
    label = "SSIM"
    direction = "higher"
    explanation = "Local structure, at most 1; 11×11 Gaussian window, data range 255."
    needs = Needs(side=SSIM_WINDOW)

    def per_image(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        """Return (B,), at most 1."""
        return ssim(reconstructions, pixel_values)


def ssim(reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
    """Return the structural similarity of each image, at most 1.

    Args:
        reconstructions: (B, 3, H, W), clamped to [-1, 1] here; H and W at least 11, the window's side.
        pixel_values: (B, 3, H, W) in [-1, 1].

    Returns:
        (B,) float32, higher is better.

    Raises:
        UserError: the images are smaller than the window.
    """
    height, width = pixel_values.shape[-2:]
    if min(height, width) < SSIM_WINDOW:
        raise UserError(
            f"SSIM needs images of at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, got {height}x{width}; use larger images"
        )
    luminance, structure = ssim_maps(to_levels(reconstructions).double(), to_levels(pixel_values).double())
    return (luminance * structure).mean(dim=(1, 2, 3)).float()


def ssim_maps(levels: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return SSIM's two factors at each whole window: luminance, and contrast times structure.

    Args:
        levels: (B, 3, H, W) float64, 0 to 255. Variances are differences of large numbers; in float64 they are exact to
            1e-11.
        reference: Images of the same shape, dtype and range.

    Returns:
        Two tensors of shape (B, 3, H - 10, W - 10), float64.
    """
    maps = torch.stack([levels, reference, levels.square(), reference.square(), levels * reference])
    x, y, xx, yy, xy = _window_means(maps)
    c1, c2 = SSIM_CONSTANTS
    luminance = (2 * x * y + c1) / (x.square() + y.square() + c1)
    structure = (2 * (xy - x * y) + c2) / (xx - x.square() + yy - y.square() + c2)
    return luminance, structure


def _window_means(maps: Tensor) -> Tensor:
    """Average each whole window of (..., H, W) with Gaussian weights: (..., H - 10, W - 10)."""
    offsets = torch.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = torch.exp(-offsets.double().square() / (2 * SSIM_SIGMA**2))
    weights /= weights.sum()
    for axis in (-2, -1):  # sums of shifted maps are five times as fast as a convolution in float64 on a CPU
        length = maps.shape[axis] - SSIM_WINDOW + 1
        total = torch.zeros_like(maps.narrow(axis, 0, length))
        for shift, weight in enumerate(weights.tolist()):
            total.add_(maps.narrow(axis, shift, length), alpha=weight)
        maps = total
    return maps
