from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from ldm_ae.evaluation.image_quality import (
    PSNR_CEILING,
    bicubic_thumbnail,
    from_levels,
    image_scores,
    psnr,
    ssim,
    to_levels,
)
from tests.evaluation.stubs import MeanDistance, pictures


def test_psnr_of_an_error_of_k_levels_is_20_log10_of_255_over_k() -> None:
    levels = torch.full((3, 3, 16, 16), 100.0)
    shift = torch.tensor([1.0, 5.0, 50.0]).view(3, 1, 1, 1)
    scores = psnr(from_levels(levels + shift), from_levels(levels))
    # float32 output of a float64 computation: about 7 digits
    assert scores.tolist() == pytest.approx([20 * math.log10(255 / k) for k in (1, 5, 50)], rel=1e-6)


def test_psnr_and_ssim_equal_torchmetrics_on_the_8_bit_images() -> None:
    originals = pictures(3)
    reconstructions = originals + 0.1 * torch.randn(originals.shape)
    ours = psnr(reconstructions, originals), ssim(reconstructions, originals)
    for i in range(3):
        pair = to_levels(reconstructions[i : i + 1]), to_levels(originals[i : i + 1])
        assert float(ours[0][i]) == pytest.approx(float(PeakSignalNoiseRatio(data_range=255.0)(*pair)), abs=1e-3)
        reference = StructuralSimilarityIndexMeasure(data_range=255.0, kernel_size=11, sigma=1.5)(*pair)
        assert float(ours[1][i]) == pytest.approx(float(reference), abs=1e-5)  # the same code on another batch size


def test_ssim_of_constant_images_is_the_luminance_term() -> None:
    a, b, c1 = 60.0, 180.0, (0.01 * 255) ** 2
    images = [from_levels(torch.full((1, 3, 32, 32), level)) for level in (a, b)]
    # In float32 a window's variance is a difference of numbers near 3e4: off by up to 1e-2, beside C2 = 58.5.
    assert float(ssim(*images)) == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), abs=1e-3)


def test_equal_images_get_the_ceiling_and_a_ssim_of_one() -> None:
    images = pictures(2)
    assert psnr(images, images).tolist() == [PSNR_CEILING, PSNR_CEILING]
    # float32 sums over a window of 121 pixels
    assert ssim(images, images).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)


def test_reconstructions_are_clamped_and_rounded_first() -> None:
    images = pictures(1)
    less_than_half_a_level = images + 0.49 / 127.5
    assert psnr(less_than_half_a_level, images).item() == PSNR_CEILING
    white = torch.ones(1, 3, 16, 16)
    assert psnr(white * 3.0, white).item() == PSNR_CEILING


def test_levels_round_trip() -> None:
    levels = torch.arange(256.0)
    assert torch.equal(to_levels(from_levels(levels)), levels)
    assert to_levels(torch.tensor([-1.5, 1.5])).tolist() == [0.0, 255.0]


def test_the_perceptual_distance_sees_rounded_images_under_its_own_name() -> None:
    images = torch.zeros(2, 3, 16, 16)  # level 127.5 rounds to 128
    scores = image_scores(images + 3.0, images, MeanDistance())
    assert list(scores) == ["psnr", "ssim", "mean_distance"]
    assert scores["mean_distance"].tolist() == pytest.approx([127 / 127.5] * 2, rel=1e-6)  # 255 - 128 levels
    assert list(image_scores(images, images, None)) == ["psnr", "ssim"]


@pytest.mark.parametrize(("size", "numbers", "expected"), [((32, 32), 4 * 8 * 8, (9, 9)), ((32, 64), 1024, (13, 26))])
def test_the_thumbnail_has_about_as_many_numbers_as_the_latents(size, numbers, expected) -> None:
    image = torch.rand(1, 3, *size)
    enlarged, small = bicubic_thumbnail(image, numbers)
    assert small == expected
    assert enlarged.shape == image.shape
    assert 3 * small[0] * small[1] == pytest.approx(numbers, rel=0.06)  # a whole number of pixels on each side


def test_a_thumbnail_as_large_as_the_image_is_the_image() -> None:
    image = torch.rand(1, 3, 16, 16)
    enlarged, small = bicubic_thumbnail(image, 10 * image.numel())
    assert small == (16, 16)
    torch.testing.assert_close(enlarged, image, atol=1e-6, rtol=0)  # float32 filter weights


def test_the_thumbnail_is_antialiased() -> None:
    stripes = torch.tensor([0.0, 1.0]).repeat(16).expand(1, 3, 32, 32)
    # 11 places on 32 columns fall on and between stripes by turns, and what hits one is black or white.
    enlarged, _ = bicubic_thumbnail(stripes, 3 * 11 * 11)
    assert float((enlarged - 0.5).abs().max()) < 0.15
