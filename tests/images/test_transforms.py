"""Sizes, positions, mirroring and value range of the networks' input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_ae.core.errors import UserError
from ldm_ae.data import BadImage, BucketTransform, ImageTransform, described_options
from ldm_ae.data.config import DataConfig


def coordinates(width: int, height: int) -> Image.Image:
    """Red is the column and green the row, so that the pixels of a crop show its position."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8))


def levels(pixel_values: torch.Tensor) -> np.ndarray:
    """Back to (H, W, 3) uint8."""
    return ((pixel_values + 1) * 127.5).round().permute(1, 2, 0).numpy().astype(np.uint8)


def test_pixel_values_equal_uint8_over_127_5_minus_1() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    seen = ImageTransform(size=16, resize="none")(Image.fromarray(np.stack([ramp] * 3, axis=-1)))
    expected = torch.arange(256, dtype=torch.float32).view(16, 16) / 127.5 - 1
    assert seen.pixel_values.dtype == torch.float32
    assert seen.pixel_values.is_contiguous()
    assert torch.equal(seen.pixel_values, expected.expand(3, 16, 16))
    assert seen.pixel_values.min() == -1
    assert seen.pixel_values.max() == 1


def test_center_crop_without_resizing_takes_the_middle() -> None:
    seen = ImageTransform(size=(4, 6), resize="none")(coordinates(20, 11))
    assert seen.crop_ltrb == (7, 3, 13, 7)
    assert seen.original_size == (11, 20)
    assert not seen.flipped
    assert np.array_equal(levels(seen.pixel_values), np.asarray(coordinates(20, 11))[3:7, 7:13])


def test_random_crop_reaches_and_records_every_position() -> None:
    transform = ImageTransform(size=4, resize="none", crop="random", flip=True)
    image, positions, flips = coordinates(7, 6), set(), 0
    for seed in range(300):
        seen = transform(image, torch.Generator().manual_seed(seed))
        left, top, right, bottom = seen.crop_ltrb
        expected = np.asarray(image)[top:bottom, left:right]
        assert np.array_equal(levels(seen.pixel_values), expected[:, ::-1] if seen.flipped else expected)
        positions.add((left, top))
        flips += seen.flipped
    assert positions == {(x, y) for x in range(4) for y in range(3)}
    assert 110 < flips < 190  # 150 expected, 8.7 the standard deviation


def test_random_crop_is_determined_by_the_generator_state() -> None:
    transform = ImageTransform(size=8, crop="random", flip=True)
    first, second = (transform(coordinates(40, 30), torch.Generator().manual_seed(5)) for _ in range(2))
    assert first.crop_ltrb == second.crop_ltrb
    assert torch.equal(first.pixel_values, second.pixel_values)


@pytest.mark.parametrize(
    ("resize", "image_size", "crop_ltrb"),
    [
        (None, (80, 40), (20, 0, 60, 40)),  # just covers: the whole height is seen
        (None, (40, 80), (0, 20, 40, 60)),
        (32, (80, 40), (30, 10, 50, 30)),  # the shorter side becomes 32, the crop of 16 sees half of it
        (16, (5, 10), (0, 2, 5, 8)),  # enlarged: 16x32, rows 8 to 24 of 32 are 2.5 to 7.5 of 10
    ],
)
def test_resizing_keeps_the_aspect_ratio_and_records_sizes(
    resize: int | None, image_size: tuple[int, int], crop_ltrb: tuple[int, int, int, int]
) -> None:
    seen = ImageTransform(size=16, resize=resize)(coordinates(*image_size))
    assert seen.pixel_values.shape == (3, 16, 16)
    assert seen.crop_ltrb == crop_ltrb
    assert seen.original_size == image_size[::-1]


def test_recorded_crop_locates_the_resized_content() -> None:
    seen = ImageTransform(size=16, resize=32)(coordinates(80, 40))
    left, top, right, bottom = seen.crop_ltrb
    found = levels(seen.pixel_values).astype(int)
    # The first sample's centre lies 0.625 original pixels inside the crop's edge; one more level for rounding.
    assert abs(found[0, 0, 0] - left) <= 2
    assert abs(found[0, 0, 1] - top) <= 2
    assert abs(found[-1, -1, 0] - right) <= 2
    assert abs(found[-1, -1, 1] - bottom) <= 2


def test_resizing_is_antialiased() -> None:
    """Stripes of one pixel, reduced eight times, are an even grey; sampling every eighth would show one stripe."""
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    seen = ImageTransform(size=8)(Image.fromarray(stripes))
    assert seen.pixel_values[:, :, 1:-1].abs().max() < 0.05  # the kernel is cut at the sides


def center_crop_arr(image: Image.Image, size: int) -> np.ndarray:
    """ADM's published steps (guided_diffusion/image_datasets.py), reimplemented with PIL and NumPy only."""
    width, height = image.size
    while min(width, height) >= 2 * size:
        width, height = width // 2, height // 2
        image = image.resize((width, height), resample=Image.BOX)
    scale = size / min(width, height)
    array = np.array(image.resize((round(width * scale), round(height * scale)), resample=Image.BICUBIC))
    top, left = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[top : top + size, left : left + size]


@pytest.mark.parametrize(
    "image_size",
    [(500, 375), (375, 500), (64, 64), (63, 200), (65, 64), (127, 128), (128, 128), (129, 300), (40, 50), (1023, 517)],
)
def test_adm_crop_equals_center_crop_arr_exactly(image_size: tuple[int, int]) -> None:
    width, height = image_size
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))
    for size in (64, 32, 37):
        seen = ImageTransform(size=size, crop="adm")(noise)
        assert np.array_equal(levels(seen.pixel_values), center_crop_arr(noise, size))
        assert seen.original_size == (height, width)
    assert not np.array_equal(levels(ImageTransform(size=64)(noise).pixel_values), center_crop_arr(noise, 64)) or (
        min(image_size) < 128  # without a box filter both are the same
    )


def test_adm_crop_records_its_position() -> None:
    seen = ImageTransform(size=16, crop="adm")(coordinates(160, 80))  # halved twice, then 40x20 to 32x16
    assert seen.crop_ltrb == (40, 0, 120, 80)
    found = levels(seen.pixel_values).astype(int)
    assert abs(found[8, 0, 0] - 42) <= 2  # the first sample's centre is 2.5 pixels inside
    assert abs(found[8, -1, 0] - 117) <= 2


def test_adm_crop_refuses_thin_images() -> None:
    with pytest.raises(BadImage, match="60000x1 is too thin"):
        ImageTransform(size=256, crop="adm")(Image.new("RGB", (60000, 1)))


def test_panoramas_within_max_pixels_are_accepted() -> None:
    """The guard against thin images, which resizing would enlarge, does not refuse images within the user's limit."""
    transform = ImageTransform(size=16, resize="none", max_pixels=100_000_000)
    assert transform(Image.new("RGB", (30_000, 3_000))).original_size == (3_000, 30_000)
    with pytest.raises(BadImage, match="30000x3000 is too thin"):
        ImageTransform(size=16, resize="none")(Image.new("RGB", (30_000, 3_000)))


def test_resize_just_covers_a_crop_of_another_aspect_ratio() -> None:
    for image_size in ((33, 100), (100, 33), (7, 7), (1, 1)):
        assert ImageTransform(size=(24, 16))(coordinates(*image_size)).pixel_values.shape == (3, 24, 16)


def test_small_image_without_resizing_is_refused() -> None:
    with pytest.raises(BadImage, match="15x40 is smaller than the crop 16x16"):
        ImageTransform(size=16, resize="none")(coordinates(15, 40))


def test_very_thin_image_is_refused_before_resizing() -> None:
    with pytest.raises(BadImage, match="60000x1 is too thin"):
        ImageTransform(size=256)(Image.new("RGB", (60000, 1)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "image size 0x0 is not positive"),
        ({"size": 64, "resize": 32}, "resize 32 is smaller than the crop 64x64; give at least 64"),
        ({"size": 64, "resize": "off"}, 'resize is "off"'),
        ({"size": 64, "crop": "left"}, 'crop is "left"'),
        ({"size": 64, "background": (0, 0, 300)}, "not three numbers from 0 to 255"),
        ({"size": (64, 32), "crop": "adm"}, "crop adm resizes to a square of the size and does not take 32x64"),
        ({"size": 64, "crop": "adm", "resize": 80}, "crop adm resizes .* does not take resize 80; use crop center"),
        ({"size": 64, "colour_profiles": "srgb"}, 'colour_profiles is "srgb"; it must be "convert" or "ignore"'),
        ({"size": 64, "max_pixels": 0}, "max_pixels is 0; it must be at least 1"),
    ],
)
def test_invalid_options_are_refused_by_name(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ImageTransform(**arguments)


def test_transform_description_is_unique_and_json_serializable() -> None:
    variants = [
        ImageTransform(size=16),
        ImageTransform(size=(16, 32)),
        ImageTransform(size=16, resize=20),
        ImageTransform(size=16, resize="none"),
        ImageTransform(size=16, crop="random"),
        ImageTransform(size=16, flip=True),
        ImageTransform(size=16, background=(0, 0, 0)),
        ImageTransform(size=16, crop="adm"),
        ImageTransform(size=16, colour_profiles="ignore"),
        ImageTransform(size=16, max_pixels=100),
        BucketTransform([(16, 16)]),
        BucketTransform([(16, 16)], colour_profiles="ignore", max_pixels=100),
    ]
    texts = [json.dumps(transform.describe(), sort_keys=True) for transform in variants]
    assert len(set(texts)) == len(variants)
    assert texts[0] == json.dumps(ImageTransform(size=(16, 16)).describe(), sort_keys=True)
    assert all(json.loads(text) == variant.describe() for text, variant in zip(texts, variants, strict=True))


OLD = {
    "version": 1, "size": [16, 16], "resize": None, "filter": "bicubic-antialiased", "crop": "center", "flip": False,
    "background": [255, 255, 255],
}  # fmt: skip
"""The description in a store of a version without colour profiles."""


def test_description_without_colour_profiles_means_ignored_profiles() -> None:
    assert ImageTransform(size=16, colour_profiles="ignore").describe() == OLD
    assert described_options(OLD)["colour_profiles"] == "ignore"


def test_described_options_inverts_describe() -> None:
    for options in (
        {},
        {"crop": "adm", "colour_profiles": "ignore"},
        {"resize": 20, "crop": "random", "flip": True, "background": (1, 2, 3), "max_pixels": 100},
    ):
        described = json.loads(json.dumps(ImageTransform(size=16, **options).describe()))  # type: ignore[arg-type]
        assert ImageTransform(size=16, **described_options(described)).describe() == described


def test_training_run_passes_its_options_to_both_transforms() -> None:
    config = DataConfig(train="x", resolution=16, crop="adm", colour_profiles="ignore", max_pixels=100)
    training, validation = config.training_transform().describe(), config.validation_transform().describe()
    assert (training["crop"], training["flip"], validation["crop"], validation["flip"]) == ("adm", True, "adm", False)
    assert training["max_pixels"] == validation["max_pixels"] == 100
    assert "colour_profiles" not in training.keys() | validation.keys()
    config = DataConfig(train="x", resolution=16)
    assert (config.training_transform().crop, config.validation_transform().crop) == ("random", "center")
    assert config.training_transform().describe()["colour_profiles"] == "convert"


def test_training_and_validation_images_are_the_crops_of_adm(tmp_path: Path) -> None:
    noise, expected = np.random.default_rng(3), set()
    for name in "abcd":
        picture = Image.fromarray(noise.integers(0, 256, (60, 75, 3), dtype=np.uint8))
        picture.save(tmp_path / f"{name}.png")
        expected.add(center_crop_arr(picture, 16).tobytes())
    config = DataConfig(train=str(tmp_path), resolution=16, crop="adm", flip=False, workers=0, validation_images=2)
    training, validation = config.loaders(batch_size=2, accumulation=1, seed=0, rank=0, world_size=1)
    assert validation is not None
    (step,) = next(iter(training.steps()))
    seen = [*step.pixel_values, *next(iter(validation)).pixel_values]
    assert len(expected) == len(seen) == 4
    assert {levels(image).tobytes() for image in seen} == expected
