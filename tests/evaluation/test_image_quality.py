from __future__ import annotations

import math

import numpy as np
import pytest
import skimage.metrics
import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.evaluation.metric_sets import validation_metrics
from ldm_ae.evaluation.metrics.interface import Setting
from ldm_ae.evaluation.metrics.psnr import PSNR_CEILING, psnr
from ldm_ae.evaluation.metrics.ssim import ssim
from ldm_ae.evaluation.scoring import Scoring
from ldm_ae.evaluation.thumbnail import bicubic_thumbnail
from ldm_ae.images.uint8 import from_levels, rounded, to_levels
from tests.evaluation.stubs import IdentityAutoencoder, MeanDistance, pictures


def test_psnr_of_an_error_of_k_levels_is_20_log10_of_255_over_k() -> None:
    levels = torch.full((3, 3, 16, 16), 100.0)
    shift = torch.tensor([1.0, 5.0, 50.0]).view(3, 1, 1, 1)
    scores = psnr(from_levels(levels + shift), from_levels(levels))
    # float32 output of a float64 computation: about 7 digits
    assert scores.tolist() == pytest.approx([20 * math.log10(255 / k) for k in (1, 5, 50)], rel=1e-6)


def as_uint8(image: Tensor) -> np.ndarray:
    """(3, H, W) in [-1, 1] -> (H, W, 3), as a saved image has it."""
    return to_levels(image).permute(1, 2, 0).numpy().astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (11, 11), (13, 40)])
@pytest.mark.parametrize("strength", [0.01, 0.1, 1.0])
def test_psnr_and_ssim_equal_scikit_image_on_the_8_bit_images(height: int, width: int, strength: float) -> None:
    originals = smooth(torch.rand(2, 3, height, width)) * 2 - 1
    reconstructions = originals + strength * torch.randn(originals.shape)
    ours = psnr(reconstructions, originals), ssim(reconstructions, originals)
    for i in range(2):
        pair = as_uint8(originals[i]), as_uint8(reconstructions[i])
        assert float(ours[0][i]) == pytest.approx(skimage.metrics.peak_signal_noise_ratio(*pair), abs=1e-4)
        reference = skimage.metrics.structural_similarity(
            *pair, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=2
        )
        assert float(ours[1][i]) == pytest.approx(reference, abs=1e-6)  # rounded to float32


@pytest.mark.parametrize("strength", [0.01, 0.1, 1.0])
def test_psnr_and_ssim_equal_torchmetrics(strength: float) -> None:
    reference = pytest.importorskip("torchmetrics.functional.image")
    originals = from_levels(to_levels(smooth(torch.rand(2, 3, 40, 61)) * 2 - 1))
    reconstructions = originals + strength * torch.randn(originals.shape)
    levels = to_levels(reconstructions).double(), to_levels(originals).double()
    expected = reference.peak_signal_noise_ratio(*levels, data_range=255.0, reduction="none", dim=(1, 2, 3))
    assert psnr(reconstructions, originals).tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    _, windows = reference.structural_similarity_index_measure(*levels, data_range=255.0, return_full_image=True)
    inside = windows[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))  # its own mean has windows over mirrored borders too
    assert ssim(reconstructions, originals).tolist() == pytest.approx(inside.tolist(), abs=1e-6)  # float32 output


def smooth(images: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(images, 5, stride=1, padding=2, count_include_pad=False)


def test_ssim_averages_only_complete_windows() -> None:
    originals, reconstructions = torch.zeros(1, 3, 30, 30), torch.zeros(1, 3, 30, 30)
    reconstructions[..., 15, 15] = 1.0
    # Of a change at the border one window sees the corner of the image, of one in the middle 121 see it.
    corner = torch.zeros(1, 3, 30, 30)
    corner[..., 0, 0] = 1.0
    lost = [1 - float(ssim(image, originals)) for image in (corner, reconstructions)]
    assert 0 < lost[0] < lost[1] / 50


def test_ssim_refuses_images_smaller_than_its_window() -> None:
    with pytest.raises(UserError, match="at least 11x11 pixels, got 10x16"):
        ssim(torch.zeros(1, 3, 10, 16), torch.zeros(1, 3, 10, 16))


def test_ssim_of_constant_images_is_the_luminance_term() -> None:
    a, b, c1 = 60.0, 180.0, (0.01 * 255) ** 2
    images = [from_levels(torch.full((1, 3, 32, 32), level)) for level in (a, b)]
    assert float(ssim(*images)) == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), abs=1e-6)


def test_equal_images_have_the_psnr_ceiling_and_ssim_one() -> None:
    images = pictures(2)
    assert psnr(images, images).tolist() == [PSNR_CEILING, PSNR_CEILING]
    assert ssim(images, images).tolist() == [1.0, 1.0]


def test_reconstructions_are_clamped_and_rounded_first() -> None:
    images = pictures(1)
    less_than_half_a_level = images + 0.49 / 127.5
    assert psnr(less_than_half_a_level, images).item() == PSNR_CEILING
    white = torch.ones(1, 3, 16, 16)
    assert psnr(white * 3.0, white).item() == PSNR_CEILING


def test_levels_round_trip() -> None:
    levels = torch.arange(256.0)
    assert torch.equal(to_levels(from_levels(levels)), levels)
    assert torch.equal(rounded(from_levels(levels) + 0.49 / 127.5), from_levels(levels))
    assert to_levels(torch.tensor([-1.5, 1.5])).tolist() == [0.0, 255.0]


def test_perceptual_distance_is_computed_on_8_bit_images() -> None:
    images = torch.zeros(2, 3, 16, 16)  # level 127.5 rounds to 128
    scores = image_scores(images + 3.0, images, MeanDistance())
    assert list(scores) == ["psnr", "ssim", "mean_distance"]
    assert scores["mean_distance"] == pytest.approx([127 / 127.5] * 2, rel=1e-6)  # 255 - 128 levels
    assert list(image_scores(images, images, None)) == ["psnr", "ssim"]


def image_scores(
    reconstructions: Tensor, pixel_values: Tensor, perceptual: MeanDistance | None
) -> dict[str, list[float]]:
    setting = Setting(model=IdentityAutoencoder(), device=torch.device("cpu"))
    return Scoring(validation_metrics(perceptual), setting).update(reconstructions, pixel_values)


@pytest.mark.parametrize(("size", "numbers", "expected"), [((32, 32), 4 * 8 * 8, (9, 9)), ((32, 64), 1024, (13, 26))])
def test_thumbnail_has_about_as_many_numbers_as_the_latents(size, numbers, expected) -> None:
    image = torch.rand(1, 3, *size)
    enlarged, small = bicubic_thumbnail(image, numbers)
    assert small == expected
    assert enlarged.shape == image.shape
    assert 3 * small[0] * small[1] == pytest.approx(numbers, rel=0.06)  # a whole number of pixels on each side


def test_thumbnail_of_full_size_equals_the_image() -> None:
    image = torch.rand(1, 3, 16, 16)
    enlarged, small = bicubic_thumbnail(image, 10 * image.numel())
    assert small == (16, 16)
    torch.testing.assert_close(enlarged, image, atol=1e-6, rtol=0)  # float32 filter weights


def test_thumbnail_is_antialiased() -> None:
    stripes = torch.tensor([0.0, 1.0]).repeat(16).expand(1, 3, 32, 32)
    # 11 places on 32 columns fall on and between stripes by turns, and what hits one is black or white.
    enlarged, _ = bicubic_thumbnail(stripes, 3 * 11 * 11)
    assert float((enlarged - 0.5).abs().max()) < 0.15
