"""PSNR and SSIM of each image, on 8-bit levels as saved images have them.

Both images are clamped to [-1, 1] and rounded to the 256 levels of an 8-bit image; the data range is 255.

Sources: SSIM is equation 13 of Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity,
IEEE Transactions on Image Processing 13(4), 2004, with its 11x11 Gaussian window of sigma 1.5, K1 = 0.01 and
K2 = 0.03, averaged over the positions at which the whole window lies in the image, and over the three colour channels.
That is scikit-image's `structural_similarity` with gaussian_weights=True, sigma=1.5, use_sample_covariance=False.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.images.uint8 import DATA_RANGE, from_levels, to_levels

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
"""Side of SSIM's window in pixels, and the standard deviation of its Gaussian weights."""
SSIM_CONSTANTS = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2
"""C1 and C2, which keep the quotients of luminance and of contrast away from 0 / 0."""

PSNR_CEILING = 100.0
"""dB given to images that are equal, whose PSNR has no finite value; nothing scores higher."""


class PerceptualDistance(Protocol):
    """A feature network that compares images, like those of `ldm_ae.losses`."""

    @property
    def name(self) -> str:
        """What a score by this network is called, for example `lpips_vgg`."""

    def __call__(self, reconstructions: Tensor, pixel_values: Tensor, /) -> Tensor:
        """(reconstructions, pixel_values), each (B, 3, H, W) in [-1, 1] -> distances (B,)."""


def psnr(reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, 10 log10(255² / mean squared error), at most `PSNR_CEILING`.

    Args:
        reconstructions: (B, 3, H, W), clamped to [-1, 1] here.
        pixel_values: (B, 3, H, W) in [-1, 1].

    Returns:
        (B,) float32, higher is better.
    """
    return _psnr(to_levels(reconstructions), to_levels(pixel_values))


def ssim(reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
    """Structural similarity of each image, at most 1.

    Args:
        reconstructions: (B, 3, H, W), clamped to [-1, 1] here; H and W at least 11, the window's side.
        pixel_values: (B, 3, H, W) in [-1, 1].

    Returns:
        (B,) float32, higher is better.

    Raises:
        UserError: the images are smaller than the window.
    """
    return _ssim(to_levels(reconstructions), to_levels(pixel_values))


def image_scores(
    reconstructions: Tensor, pixel_values: Tensor, perceptual: PerceptualDistance | None
) -> dict[str, Tensor]:
    """`psnr`, `ssim` and, under its network's name, the perceptual distance: each (B,) float32 on 8-bit levels.

    Args:
        reconstructions: (B, 3, H, W), clamped to [-1, 1] here.
        pixel_values: (B, 3, H, W) in [-1, 1].
        perceptual: A feature network on the images' device, or None for no such score.
    """
    levels, reference = to_levels(reconstructions), to_levels(pixel_values)
    scores = {"psnr": _psnr(levels, reference), "ssim": _ssim(levels, reference)}
    if perceptual is not None:
        scores[perceptual.name] = perceptual(from_levels(levels), from_levels(reference)).float()
    return scores


def bicubic_thumbnail(pixel_values: Tensor, numbers: int) -> tuple[Tensor, tuple[int, int]]:
    """What shrinking an image to about `numbers` numbers, and enlarging it again, leaves of it.

    Args:
        pixel_values: (B, 3, H, W).
        numbers: How many numbers the thumbnail may have: 3 h w of it is the nearest to this at the image's aspect.

    Returns:
        The enlarged thumbnail (B, 3, H, W) and the thumbnail's (h, w), never larger than the image. Both ways are
        bicubic, and antialiased on the way down; the thumbnail itself is not rounded, as latents are not.
    """
    height, width = pixel_values.shape[-2:]
    side = min((numbers / (3 * height * width)) ** 0.5, 1.0)
    small = max(round(height * side), 1), max(round(width * side), 1)
    thumbnail = F.interpolate(pixel_values, size=small, mode="bicubic", antialias=True)
    return F.interpolate(thumbnail, size=(height, width), mode="bicubic"), small


def _psnr(levels: Tensor, reference: Tensor) -> Tensor:
    # Differences of levels are integers, so that the mean of their squares in float64 is the same in any order.
    error = (levels - reference).double().square().mean(dim=(1, 2, 3))
    return (10.0 * torch.log10(DATA_RANGE**2 / error)).clamp(max=PSNR_CEILING).float()


def _ssim(levels: Tensor, reference: Tensor) -> Tensor:
    height, width = levels.shape[-2:]
    if min(height, width) < SSIM_WINDOW:
        raise UserError(
            f"SSIM needs images of at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, got {height}x{width}; use larger images"
        )
    # Variances are differences of large numbers. In float64 they are exact to 1e-11.
    maps = torch.stack([levels, reference, levels.square(), reference.square(), levels * reference])
    x, y, xx, yy, xy = _window_means(maps.double())
    c1, c2 = SSIM_CONSTANTS
    luminance = (2 * x * y + c1) / (x.square() + y.square() + c1)
    structure = (2 * (xy - x * y) + c2) / (xx - x.square() + yy - y.square() + c2)
    return (luminance * structure).mean(dim=(1, 2, 3)).float()


def _window_means(maps: Tensor) -> Tensor:
    """(..., H, W) -> (..., H - 10, W - 10): the mean of each whole window, with Gaussian weights."""
    offsets = torch.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = torch.exp(-offsets.double().square() / (2 * SSIM_SIGMA**2))
    weights /= weights.sum()
    for axis in (-2, -1):  # sums of shifted maps: in float64 on a CPU five times as fast as a convolution
        length = maps.shape[axis] - SSIM_WINDOW + 1
        total = torch.zeros_like(maps.narrow(axis, 0, length))
        for shift, weight in enumerate(weights.tolist()):
            total.add_(maps.narrow(axis, shift, length), alpha=weight)
        maps = total
    return maps
