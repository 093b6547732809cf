"""Structural similarity, at one scale and at several: the formulas that scores and losses share.

Source: equation 13 of Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, IEEE
Transactions on Image Processing 13(4), 2004, with its 11x11 Gaussian window of sigma 1.5, K1 = 0.01 and K2 = 0.03,
averaged over the positions at which the whole window lies in the image, and over the channels, such as three colours.

Several scales: equation 7 of Wang, Simoncelli, Bovik, Multiscale Structural Similarity for Image Quality Assessment,
Asilomar Conference on Signals, Systems and Computers, 2003: contrast and structure at five scales, luminance at the
coarsest, each the mean over whole windows, raised to the paper's exponents and multiplied. Each scale averages 2x2
pixels of the previous one; an odd last row or column is dropped. A negative mean of contrast and structure, whose power
would be complex, counts as 0. The product is computed per channel; an image's value is the mean over channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.images.missing import known_windows
from ldm_ae.images.stored import mean_where
from ldm_ae.images.uint8 import DATA_RANGE

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
"""Side of SSIM's window in pixels, and the standard deviation of its Gaussian weights."""
SSIM_CONSTANTS = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2
"""C1 and C2, which keep the quotients of luminance and of contrast away from 0 / 0."""
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""The exponents of several scales, from the finest scale to the coarsest."""
SMALLEST_SIDE = SSIM_WINDOW * 2 ** (len(SCALE_WEIGHTS) - 1)
"""Side in pixels that yields one whole window at the coarsest of the scales: 176."""


def similarity(levels: Tensor, reference: Tensor) -> Tensor:
    """Return SSIM of each image, (B,), at most 1.

    Args:
        levels: (B, C, H, W), 0 to 255; see `ssim_maps`. H and W are at least 11, the window's side.
        reference: Images of the same shape, dtype and range.

    Raises:
        UserError: The images are smaller.
    """
    _require_side("SSIM", levels, SSIM_WINDOW)
    luminance, structure = ssim_maps(levels, reference)
    return (luminance * structure).mean(dim=(1, 2, 3))


def channel_similarity(levels: Tensor, reference: Tensor, known: Tensor | None = None) -> Tensor:
    """Return SSIM of each channel, (B, C), at most 1; see `similarity`.

    Args:
        levels: (B, C, H, W), 0 to 255.
        reference: Images of the same shape, dtype and range.
        known: Where there is data, (B, C, H, W) or (B, 1, H, W) bool; other windows do not count. None for all.
    """
    _require_side("SSIM", levels, SSIM_WINDOW)
    luminance, structure = ssim_maps(levels, reference)
    where = None if known is None else known_windows(known, SSIM_WINDOW)
    return mean_where(luminance * structure, where, otherwise=1.0)


def multiscale_similarity(levels: Tensor, reference: Tensor, *, floor: float = 0.0) -> Tensor:
    """Return MS-SSIM of each image, (B,), in [0, 1].

    Args:
        levels: (B, C, H, W), 0 to 255; see `ssim_maps`. H and W are at least 176.
        reference: Images of the same shape, dtype and range.
        floor: Value below which a scale's mean counts as this. Above 0 it bounds the gradient, which is infinite at 0.

    Raises:
        UserError: The images are smaller.
    """
    return channel_multiscale_similarity(levels, reference, floor=floor).mean(dim=1)


def channel_multiscale_similarity(
    levels: Tensor, reference: Tensor, known: Tensor | None = None, *, floor: float = 0.0
) -> Tensor:
    """Return MS-SSIM of each channel, (B, C), in [0, 1]; see `multiscale_similarity` and `channel_similarity`."""
    _require_side("MS-SSIM", levels, SMALLEST_SIDE)
    product = levels.new_ones(levels.shape[:2])
    for scale, weight in enumerate(SCALE_WEIGHTS):
        if scale > 0:
            levels, reference = F.avg_pool2d(levels, 2), F.avg_pool2d(reference, 2)
            known = None if known is None else F.avg_pool2d(known.float(), 2) == 1
        luminance, structure = ssim_maps(levels, reference)
        last = scale == len(SCALE_WEIGHTS) - 1
        where = None if known is None else known_windows(known, SSIM_WINDOW)
        means = mean_where(luminance * structure if last else structure, where, otherwise=1.0)
        product = product * means.clamp(min=floor) ** weight
    return product


def _require_side(name: str, images: Tensor, side: int) -> None:
    height, width = images.shape[-2:]
    if min(height, width) < side:
        raise UserError(
            f"{name} needs images of at least {side}x{side} pixels, got {height}x{width}; use larger images"
        )


def ssim_maps(levels: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return SSIM's two factors at each whole window: luminance, and contrast times structure.

    Args:
        levels: (B, C, H, W), 0 to 255, in float64 for scores: variances are differences of large numbers, which are
            exact to 1e-11 in it, and to 1e-2 in float32, which suffices for a loss (C2 is 58.5).
        reference: Images of the same shape, dtype and range.

    Returns:
        Two tensors of shape (B, C, H - 10, W - 10), in the dtype of the levels.
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
