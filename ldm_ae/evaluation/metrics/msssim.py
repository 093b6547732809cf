"""Multi-scale structural similarity of each image, on 8-bit levels.

Source: equation 7 of Wang, Simoncelli, Bovik, Multiscale Structural Similarity for Image Quality Assessment, Asilomar
Conference on Signals, Systems and Computers, 2003: contrast and structure at five scales, luminance at the coarsest,
each the mean over whole 11x11 Gaussian windows, raised to the paper's exponents and multiplied. Each scale averages 2x2
pixels of the previous one; an odd last row or column is dropped. A negative mean of contrast and structure, whose power
would be complex, counts as 0. The product is computed per colour channel; an image's value is the mean of the three.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.evaluation.metrics.interface import ImageMetric, Needs
from ldm_ae.evaluation.metrics.ssim import SSIM_WINDOW, ssim_maps
from ldm_ae.images.uint8 import to_levels

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""The paper's exponents, from the finest scale to the coarsest."""
SMALLEST_SIDE = SSIM_WINDOW * 2 ** (len(SCALE_WEIGHTS) - 1)
"""Side in pixels that yields one whole window at the coarsest scale: 176."""


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
    height, width = pixel_values.shape[-2:]
    if min(height, width) < SMALLEST_SIDE:
        raise UserError(
            f"MS-SSIM needs images of at least {SMALLEST_SIDE}x{SMALLEST_SIDE} pixels, got {height}x{width}; use "
            "larger images"
        )
    levels, reference = to_levels(reconstructions).double(), to_levels(pixel_values).double()
    product = torch.ones(levels.shape[:2], dtype=torch.float64, device=levels.device)
    for scale, weight in enumerate(SCALE_WEIGHTS):
        if scale > 0:
            levels, reference = F.avg_pool2d(levels, 2), F.avg_pool2d(reference, 2)
        luminance, structure = ssim_maps(levels, reference)
        last = scale == len(SCALE_WEIGHTS) - 1
        means = (luminance * structure if last else structure).mean(dim=(2, 3))
        product = product * means.clamp(min=0.0) ** weight
    return product.mean(dim=1).float()
