"""Crop geometry, mirror images and buckets, for images and sizes of any shape."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from PIL import Image

from ldm_ae.data import BucketTransform, ImageTransform, TransformedImage, WholeTransform, sizes_of_area
from ldm_ae.images.crops import measure_crops
from tests.pictures import smooth_picture

SIDE = st.integers(1, 90)
TARGET = st.integers(1, 48)
LEVEL = 2 / 255
"""One of the 256 levels of a pixel in [-1, 1]."""


def assert_inside(result: TransformedImage) -> tuple[int, int]:
    """Assert that the crop lies in the original, and return its width and height."""
    height, width = result.original_size
    left, top, right, bottom = result.crop_ltrb
    assert 0 <= left <= right <= width
    assert 0 <= top <= bottom <= height
    assert result.pixel_values.min() >= -1
    assert result.pixel_values.max() <= 1
    return right - left, bottom - top


@given(SIDE, SIDE, TARGET, TARGET)
def test_crop_has_its_size_and_lies_inside_the_image(width: int, height: int, target: int, other: int) -> None:
    result = ImageTransform(size=(target, other))(smooth_picture(0, width, height))
    assert result.pixel_values.shape == (3, target, other)
    crop_width, crop_height = assert_inside(result)
    # The image is resized until it just covers the size, so that one side is whole.
    assert crop_width == width or crop_height == height
    # Resized sides and crops are rounded to pixels: half a pixel of the result and half of the original at each end.
    scale = min(width / other, height / target)
    assert abs(crop_width - other * scale) <= 1 + scale
    assert abs(crop_height - target * scale) <= 1 + scale


@given(SIDE, SIDE, TARGET, st.integers(0, 40), st.integers(0, 2**31))
def test_random_crop_lies_inside_the_image(width: int, height: int, size: int, more: int, seed: int) -> None:
    transform = ImageTransform(size=size, resize=size + more, crop="random", flip=True)
    result = transform(smooth_picture(1, width, height), torch.Generator().manual_seed(seed))
    assert result.pixel_values.shape == (3, size, size)
    crop_width, crop_height = assert_inside(result)
    scale = min(width, height) / (size + more)
    assert abs(crop_width - size * scale) <= 1 + scale
    assert abs(crop_height - size * scale) <= 1 + scale


@given(SIDE, SIDE, st.integers(1, 24))
@example(16, 40, 1)  # halving rounds 5 down to 2
def test_adm_crop_is_central_and_covers_the_square(width: int, height: int, size: int) -> None:
    result = ImageTransform(size=size, crop="adm")(smooth_picture(2, width, height))
    assert result.pixel_values.shape == (3, size, size)
    assert_inside(result)
    left, top, right, bottom = result.crop_ltrb
    # The margins differ by at most one pixel of the resized image, of which the crop has `size` in each direction. Both
    # ends of the crop are rounded by half a pixel of the original.
    assert abs(left - (width - right)) <= 1 + (right - left + 1) / size
    assert abs(top - (height - bottom)) <= 1 + (bottom - top + 1) / size


@given(SIDE, SIDE, TARGET, st.integers(0, 2**31))
def test_flip_mirrors_the_same_crop(width: int, height: int, size: int, seed: int) -> None:
    image = smooth_picture(3, width, height)
    plain = ImageTransform(size=size)(image)
    flipped = ImageTransform(size=size, flip=True)(image, torch.Generator().manual_seed(seed))
    expected = plain.pixel_values.flip(-1) if flipped.flipped else plain.pixel_values
    assert torch.equal(flipped.pixel_values, expected)
    assert flipped.crop_ltrb == plain.crop_ltrb


@given(SIDE, SIDE, TARGET)
def test_center_crop_commutes_with_mirroring(width: int, height: int, size: int) -> None:
    """This holds for an even margin: the extra column of an odd one stays on the right."""
    image = smooth_picture(4, width, height)
    scale = max(size / width, size / height)
    assume((max(size, round(width * scale)) - size) % 2 == 0)
    transform = ImageTransform(size=size)
    mirrored = transform(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)).pixel_values
    # Pillow rounds the resizing kernel's weights, not symmetrically.
    torch.testing.assert_close(mirrored, transform(image).pixel_values.flip(-1), rtol=0, atol=1.01 * LEVEL)


@given(SIDE, SIDE)
def test_crop_of_the_full_size_preserves_every_pixel(width: int, height: int) -> None:
    image = smooth_picture(5, width, height)
    result = ImageTransform(size=(height, width))(image)
    assert result.crop_ltrb == (0, 0, width, height)
    pixels = ((result.pixel_values + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
    assert np.array_equal(pixels.numpy(), np.asarray(image))


@given(st.integers(16, 90), st.integers(16, 90), st.integers(1, 8), st.none() | st.integers(1, 4))
def test_whole_image_mode_crops_less_than_one_multiple(
    width: int, height: int, multiple: int, shorter: int | None
) -> None:
    length = None if shorter is None else shorter * multiple
    result = WholeTransform(length, multiple=multiple)(smooth_picture(6, width, height))
    _, result_height, result_width = result.pixel_values.shape
    assert result_height % multiple == result_width % multiple == 0
    crop_width, crop_height = assert_inside(result)
    if length is None:
        assert (crop_width, crop_height) == (result_width, result_height)
        assert width - crop_width < multiple
        assert height - crop_height < multiple
    else:
        assert min(result_height, result_width) == length


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 32), st.floats(1, 8))
def test_bucket_sizes_of_an_area_have_valid_multiples_and_ratios(
    height: int, width: int, multiple: int, max_ratio: float
) -> None:
    assume(math.isqrt(height * width) >= multiple)
    sizes = sizes_of_area(height, width, multiple=multiple, max_ratio=max_ratio)
    assert sizes == sorted({(b, a) for a, b in sizes})  # a portrait for each landscape
    square = math.isqrt(height * width) // multiple * multiple
    assert (square, square) in sizes
    for a, b in sizes:
        assert a % multiple == b % multiple == 0
        assert 0 < a * b <= height * width
        assert max(a, b) <= max_ratio * min(a, b)
    for a, b in set(sizes) - {(square, square)}:
        # One of its sides could not be a multiple longer.
        assert (a + multiple) * b > height * width or a * (b + multiple) > height * width


SIZES = st.lists(st.tuples(st.integers(1, 64), st.integers(1, 64)), min_size=1, max_size=6)


@given(SIZES, st.integers(1, 500), st.integers(1, 500))
def test_image_is_assigned_to_the_nearest_aspect_ratio(sizes: list[tuple[int, int]], height: int, width: int) -> None:
    def distance(size: tuple[int, int]) -> Fraction:
        ratio = Fraction(size[0] * width, size[1] * height)
        return max(ratio, 1 / ratio)

    transform = BucketTransform(sizes)
    chosen = transform.choose(height, width)
    assert chosen in sizes
    assert distance(chosen) == min(map(distance, sizes))
    assert BucketTransform(reversed(sizes)).choose(height, width) == chosen
    turned = BucketTransform([(b, a) for a, b in sizes]).choose(width, height)
    assert distance((turned[1], turned[0])) == distance(chosen)


@given(st.lists(st.tuples(SIDE, SIDE, TARGET, TARGET), min_size=1, max_size=5))
def test_mean_cropped_fraction_equals_its_definition(images: list[tuple[int, int, int, int]]) -> None:
    results = [
        ImageTransform(size=(target, other))(smooth_picture(7, width, height))
        for width, height, target, other in images
    ]
    crops, originals, sizes = (
        np.array(numbers)
        for numbers in zip(*((r.crop_ltrb, r.original_size, r.pixel_values.shape[1:]) for r in results), strict=True)
    )
    measured = measure_crops(crops, originals, sizes)
    assert 0 <= measured.mean_fraction <= 1
    assert 0 <= measured.enlarged <= len(images)
    whole = measure_crops(np.array([[0, 0, w, h] for h, w in originals]), originals, originals)
    assert (whole.mean_fraction, whole.enlarged) == (0.0, 0)
