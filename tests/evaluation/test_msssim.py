"""MS-SSIM against a second implementation in numpy and scipy, and at cases that its definition decides."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.evaluation.metrics.interface import CannotScoreError
from ldm_ae.evaluation.metrics.msssim import MSSSIM, msssim
from ldm_ae.evaluation.metrics.ssim import ssim
from ldm_ae.images.similarity import SCALE_WEIGHTS
from ldm_ae.images.uint8 import from_levels, to_levels
from tests.evaluation.stubs import pictures


def by_numpy(x: np.ndarray, y: np.ndarray) -> float:
    """MS-SSIM of two (H, W, 3) arrays of levels, written from the paper, as a mean over the channels."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

    def blur(image: np.ndarray) -> np.ndarray:
        full = scipy.ndimage.gaussian_filter(image, 1.5, radius=5, mode="constant")
        return full[5:-5, 5:-5]  # only complete windows

    def halve(image: np.ndarray) -> np.ndarray:
        height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
        return image[:height, :width].reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))

    products = []
    for a, b in zip(np.moveaxis(x.astype(float), 2, 0), np.moveaxis(y.astype(float), 2, 0), strict=True):
        product = 1.0
        for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
            mean_a, mean_b = blur(a), blur(b)
            variances = blur(a**2) - mean_a**2 + blur(b**2) - mean_b**2
            contrast = (2 * (blur(a * b) - mean_a * mean_b) + c2) / (variances + c2)
            if scale == 4:
                contrast = contrast * (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
            product *= max(contrast.mean(), 0.0) ** weight
            a, b = halve(a), halve(b)
        products.append(product)
    return float(np.mean(products))


def as_levels(image: Tensor) -> np.ndarray:
    return ((image.clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).double().numpy()


@pytest.mark.parametrize(("height", "width"), [(176, 176), (187, 210)])
def test_msssim_equals_an_independent_implementation(height: int, width: int) -> None:
    originals = pictures(2, 224)[..., :height, :width]
    noise = torch.randn(originals.shape, generator=torch.Generator().manual_seed(1))
    found = []
    for strength in (0.02, 0.2, 1.0):
        reconstructions = originals + strength * noise
        scores = msssim(reconstructions, originals)
        expected = [by_numpy(as_levels(a), as_levels(b)) for a, b in zip(reconstructions, originals, strict=True)]
        assert scores.tolist() == pytest.approx(expected, abs=1e-6)  # rounded to float32
        assert msssim(originals, reconstructions).tolist() == pytest.approx(scores.tolist(), abs=1e-7)  # symmetric
        found.append(float(scores.mean()))
    assert 1.0 > found[0] > found[1] > found[2] > 0.0


def by_torchmetrics(decoded: Tensor, originals: Tensor) -> list[float]:
    """MS-SSIM from torchmetrics' SSIM at each scale, without its windows over mirrored borders at the coarsest."""
    reference = pytest.importorskip("torchmetrics.functional.image").structural_similarity_index_measure
    products = torch.ones(len(originals), dtype=torch.float64)
    for scale, weight in enumerate(SCALE_WEIGHTS):
        if scale < 4:
            options = {"return_contrast_sensitivity": True, "reduction": "none"}
            _, value = reference(decoded, originals, data_range=255.0, **options)
        else:
            _, windows = reference(decoded, originals, data_range=255.0, return_full_image=True)
            value = windows[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))
        products *= value.relu() ** weight
        decoded, originals = (torch.nn.functional.avg_pool2d(images, 2) for images in (decoded, originals))
    return products.tolist()


def test_msssim_of_grey_images_equals_torchmetrics() -> None:
    """It averages the channels at each scale and ours at the end, as the paper's is of one channel: grey is both."""
    originals = pictures(2, 200)[:, :1, :176, :190].expand(-1, 3, -1, -1)
    noise = torch.randn(2, 1, 176, 190, generator=torch.Generator().manual_seed(2))
    for strength in (0.02, 0.3):
        decoded = originals + strength * noise
        expected = by_torchmetrics(to_levels(decoded).double(), to_levels(originals).double())
        assert msssim(decoded, originals).tolist() == pytest.approx(expected, abs=1e-6)  # float32 output


def test_msssim_of_identical_images_is_one() -> None:
    images = pictures(2, 176)
    assert msssim(images, images).tolist() == [1.0, 1.0]


def test_msssim_of_constant_images_is_the_coarsest_luminance_term() -> None:
    a, b, c1 = 60.0, 180.0, (0.01 * 255) ** 2
    images = [from_levels(torch.full((1, 3, 176, 176), level)) for level in (a, b)]
    luminance = (2 * a * b + c1) / (a * a + b * b + c1)
    assert float(msssim(*images)) == pytest.approx(luminance ** SCALE_WEIGHTS[-1], abs=1e-6)


def test_msssim_clamps_negative_structure_to_zero() -> None:
    checkers = torch.ones(1, 3, 176, 176)
    checkers[..., ::2, ::2] = -1.0
    checkers[..., 1::2, 1::2] = -1.0
    assert float(ssim(-checkers, checkers)) < 0.0
    assert float(msssim(-checkers, checkers)) == 0.0


def test_msssim_refuses_small_images_with_the_minimum_size() -> None:
    images = torch.zeros(1, 3, 175, 300)
    with pytest.raises(UserError, match="at least 176x176 pixels, got 175x300"):
        msssim(images, images)
    with pytest.raises(CannotScoreError, match="MS-SSIM needs images of at least 176x176 pixels, got 175x300"):
        MSSSIM().require(images.shape)
    MSSSIM().require((1, 3, 176, 300))
