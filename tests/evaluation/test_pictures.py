from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_ae.evaluation import comparison_grid, error_map, latent_channel_pictures, legible, to_uint8_image
from tests.evaluation.stubs import pictures
from tests.pictures import smooth_picture


def grey(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB")).astype(float).mean(axis=2)


def test_report_image_roundtrips_exactly() -> None:
    image = smooth_picture(3, 20, 12)
    (tensor,) = (torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1.0,)
    again = to_uint8_image(tensor)
    assert again.size == (20, 12)
    assert again.mode == "RGB"
    assert np.array_equal(np.array(again), np.array(image))
    every_level = torch.arange(256.0).repeat(3, 1, 1) / 127.5 - 1.0
    assert np.array_equal(np.array(to_uint8_image(every_level))[0, :, 0], np.arange(256))


def test_pixel_values_are_clamped_and_rounded() -> None:
    pixels = torch.tensor([-7.0, 7.0, 100.4 / 127.5 - 1, 100.6 / 127.5 - 1]).repeat(3, 1, 1)
    assert np.array(to_uint8_image(pixels))[0, :, 0].tolist() == [0, 255, 100, 101]


def test_grid_has_each_original_above_its_reconstruction() -> None:
    originals, reconstructions = pictures(5, 16), pictures(5, 16).flip(3)
    grid = comparison_grid(originals, reconstructions, columns=3, background=(9, 9, 9))
    assert grid.size == (3 * 16 + 2 * 4, 2 * (2 * 16 + 2) + 8)
    pixels = np.array(grid)
    for i, (left, top) in enumerate([(0, 0), (20, 0), (40, 0), (0, 42), (20, 42)]):
        above, below = pixels[top : top + 16, left : left + 16], pixels[top + 18 : top + 34, left : left + 16]
        assert np.array_equal(above, np.array(to_uint8_image(originals[i])))
        assert np.array_equal(below, np.array(to_uint8_image(reconstructions[i])))
    for separator in (pixels[16:18, :16], pixels[:34, 16:20], pixels[34:42], pixels[42:, 40:]):
        assert (separator == 9).all()


def test_grid_is_as_wide_as_its_images() -> None:
    assert comparison_grid(pictures(2, 16), pictures(2, 16)).size == (36, 34)


def test_small_images_are_enlarged_by_repeating_pixels() -> None:
    images = torch.arange(2 * 3 * 28 * 40.0).view(2, 3, 28, 40)
    enlarged = legible(images)
    assert enlarged.shape == (2, 3, 84, 120)  # 28 is enlarged by 3, the least that gives 64
    assert all(torch.equal(enlarged[..., i::3, j::3], images) for i in range(3) for j in range(3))
    assert legible(pictures(1, 64)).shape[-2:] == (64, 64)


def test_error_map_ranges_from_black_to_its_gain_limit() -> None:
    original = torch.full((3, 1, 4), -1.0)
    # 0, 1/8, 1/4 and 1 of the range, on all colours
    reconstruction = original + torch.tensor([0.0, 0.25, 0.5, 2.0])
    lightness = grey(error_map(original, reconstruction, gain=4.0))[0]
    assert lightness[0] < 3
    assert lightness[0] < lightness[1] < lightness[2]
    assert lightness[2] == pytest.approx(lightness[3], abs=2)  # 64 of 255 is a little above a quarter; a palette entry
    one_colour = original.clone()
    one_colour[0] += 0.75  # a mean over the colours of 1/8
    assert grey(error_map(original, one_colour, gain=4.0))[0, 0] == pytest.approx(lightness[1], abs=2)


def test_latent_channels_are_normalized_separately() -> None:
    small, large = torch.randn(8, 8), torch.randn(8, 8)
    latents = torch.stack([small, 1000.0 * small + 77.0, large])
    first, second, third = latent_channel_pictures(latents)
    assert first.size == (8, 8)
    # Float32 rounding of the scaled channel may move a value by one of 256 steps of colour.
    np.testing.assert_allclose(np.array(first).astype(int), np.array(second).astype(int), atol=1)
    assert np.array(first).std() > 20
    assert not np.array_equal(np.array(first), np.array(third))
    steps = np.array(first).flatten()[small.flatten().argsort()]
    assert (np.diff(steps.astype(int)) >= 0).all()


def test_given_statistics_replace_those_of_the_image() -> None:
    latents = torch.tensor([-2.5, 0.0, 2.5, 9.0]).view(1, 1, 4) * 3.0 + 1.0
    (picture,) = latent_channel_pictures(latents, mean=torch.tensor([1.0]), std=torch.tensor([3.0]))
    assert np.array(picture)[0].tolist() == [0, 128, 255, 255]


def test_constant_latent_channel_has_the_middle_colour() -> None:
    (picture,) = latent_channel_pictures(torch.full((1, 2, 2), 5.0))
    assert (np.array(picture) == 128).all()
