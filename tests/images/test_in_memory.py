"""Images in memory become the pixel values that the commands read from files, or are refused with the fix."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_ae.core.errors import UserError
from ldm_ae.images.decoding import Decoding
from ldm_ae.images.in_memory import batches_of_one_size, pixel_values_of, to_uint8_image
from ldm_ae.images.pixels import RGB, images_in_range
from ldm_ae.images.profiles import ADOBE_RGB_GAMMA, ADOBE_RGB_PRIMARIES, rgb_profile
from ldm_ae.images.uint8 import from_levels
from tests.pictures import smooth_picture

PICTURE = smooth_picture(3, 12, 8)
LEVELS = np.array(PICTURE)
EXPECTED = from_levels(torch.from_numpy(LEVELS).permute(2, 0, 1))


def only(images: Any, **options: Any) -> torch.Tensor:
    (found,) = pixel_values_of(images, **options)
    assert found.dtype == torch.float32
    return found


def file_of(image: Image.Image, image_format: str, **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, image_format, **options)
    return data.getvalue()


@pytest.mark.parametrize("images", [
    PICTURE, LEVELS, LEVELS[None], torch.from_numpy(LEVELS).permute(2, 0, 1),
    torch.from_numpy(LEVELS).permute(2, 0, 1)[None], [PICTURE], (LEVELS,),
])  # fmt: skip
def test_images_of_8_bits_are_exact(images: Any) -> None:
    assert torch.equal(only(images), EXPECTED)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float_arrays_are_in_0_1(dtype: Any) -> None:
    # 1e-6: float32 rounds 2 x - 1 at 6e-8, and level / 255 in float32 before that.
    assert torch.allclose(only((LEVELS / 255.0).astype(dtype)), EXPECTED, atol=1e-6)


def test_big_endian_and_half_arrays_are_read() -> None:
    assert torch.allclose(only((LEVELS / 255.0).astype(">f4")), EXPECTED, atol=1e-6)
    # 2e-3: float16 has 11 bits.
    assert torch.allclose(only((LEVELS / 255.0).astype(np.float16)), EXPECTED, atol=2e-3)


def test_float_tensors_are_pixel_values() -> None:
    assert torch.equal(only(EXPECTED), EXPECTED)
    assert torch.equal(only(EXPECTED.double()), EXPECTED)


def test_value_range_replaces_the_default() -> None:
    unit = torch.from_numpy(LEVELS).permute(2, 0, 1) / 255.0
    assert torch.allclose(only(unit, value_range=(0, 1)), EXPECTED, atol=1e-6)
    assert torch.equal(only(unit, value_range=(-1, 1)), unit)
    assert torch.allclose(only(LEVELS.astype(float), value_range=(0, 255)), EXPECTED, atol=1e-6)


def test_grey_is_repeated_and_alpha_is_over_white() -> None:
    grey = LEVELS[..., 0]
    for images in (grey, grey[..., None], Image.fromarray(grey), torch.from_numpy(grey)[None]):
        assert torch.equal(only(images), from_levels(torch.from_numpy(grey)).expand(3, -1, -1))
    assert torch.allclose(only(grey / 255.0)[1], from_levels(torch.from_numpy(grey)), atol=1e-6)
    clear = np.concatenate([LEVELS, np.zeros((8, 12, 1), np.uint8)], axis=-1)
    for images in (clear, Image.fromarray(clear), torch.from_numpy(clear).permute(2, 0, 1)):
        assert torch.equal(only(images), torch.ones(3, 8, 12))


def test_opened_images_are_read_as_their_files(tmp_path: Path) -> None:
    """Rotation by EXIF, colour profile, 16 bits, palette with transparency; also after `convert`, and from the path."""
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = rgb_profile("Adobe RGB", ADOBE_RGB_PRIMARIES, curve=ADOBE_RGB_GAMMA)
    clear = PICTURE.convert("P")
    clear.info["transparency"] = 0
    wide = Image.fromarray((np.arange(96, dtype=np.uint16) * 600).reshape(8, 12))
    files = {
        "turned.jpg": file_of(PICTURE, "JPEG", exif=exif.tobytes()),
        "turned.tif": file_of(PICTURE, "TIFF", exif=exif.tobytes()),
        "adobe.png": file_of(PICTURE, "PNG", icc_profile=profile),
        "wide.png": file_of(wide, "PNG"),
        "clear.png": file_of(clear, "PNG"),
        "cmyk.jpg": file_of(PICTURE.convert("CMYK"), "JPEG"),
    }
    for name, data in files.items():
        decoded = Decoding()(data).image
        expected = from_levels(torch.from_numpy(np.array(decoded)).permute(2, 0, 1))
        (tmp_path / name).write_bytes(data)
        opened = Image.open(tmp_path / name)
        before = np.array(Image.open(tmp_path / name))
        for images in (opened, opened, tmp_path / name, str(tmp_path / name)):
            assert torch.equal(only(images), expected), name
        assert np.array_equal(np.array(opened), before), "the image of the caller has changed"
    assert only(Image.open(tmp_path / "turned.jpg").convert("RGB")).shape == (3, 12, 8)
    assert not torch.equal(only(Image.open(tmp_path / "adobe.png")), EXPECTED)


def test_size_resizes_and_crops() -> None:
    wide, high = smooth_picture(1, 40, 20), smooth_picture(2, 20, 30)
    found = pixel_values_of([wide, np.array(high)], size=16)
    assert [tuple(image.shape) for image in found] == [(3, 16, 16)] * 2
    assert pixel_values_of(wide, size=(8, 16))[0].shape == (3, 8, 16)


@pytest.mark.parametrize(("images", "message"), [
    ([], "images is empty"),
    (None, "got NoneType"),
    (np.zeros((3, 8, 12), np.uint8), r"channels seem to be first: np\.moveaxis\(images, -3, -1\)"),
    (np.zeros((8, 12, 4)), "composite the alpha channel"),
    (np.zeros((2, 2, 8, 12, 3), np.uint8), r"got \(2, 2, 8, 12, 3\)"),
    (np.zeros((0, 8, 12, 3), np.uint8), r"got \(0, 8, 12, 3\)"),
    (LEVELS.astype(np.int64), r"got int64; convert levels 0 to 255 by \.astype\('uint8'\)"),
    (LEVELS.astype(np.uint16), "got uint16; divide by 65535"),
    (LEVELS.astype(np.float32), r"must be in \[0, 1\], got values from .* Give levels 0 to 255 as uint8"),
    (LEVELS / 127.5 - 1, r"must be in \[0, 1\], got values from -"),
    (np.full((8, 8, 3), np.nan), "got values from nan"),
    (torch.zeros(8, 12, 3, dtype=torch.uint8), r"channels seem to be last: images\.permute\(2, 0, 1\)"),
    (torch.zeros(2, 8, 12, 3, dtype=torch.uint8), r"images\.permute\(0, 3, 1, 2\)"),
    (torch.zeros(8, 12, dtype=torch.uint8), r"a grey image is images\[None\]"),
    (torch.zeros(3, 8, 8, dtype=torch.int64), r"convert levels 0 to 255 by \.to\(torch\.uint8\)"),
    (torch.rand(3, 8, 8), r"without negative values.*value_range=\(0, 1\)"),
    (torch.rand(3, 8, 8) * 255, r"must be in \[-1, 1\], got values from"),
    (torch.full((3, 8, 8), torch.inf), "got values from inf to inf"),
    (torch.full((3, 8, 8), torch.nan), "got values from nan to nan"),
    ([PICTURE, torch.rand(3, 8, 8)], r"images\[1\] is a tensor without negative values"),
    ("nowhere.png", r"nowhere\.png: No such file"),
    (".", "is the folder"),
    (Image.new("I", (4, 4)), "have no defined white"),
    (Image.new("RGB", (0, 4)), "has no pixels"),
])  # fmt: skip
def test_refusals_name_the_fix(images: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pixel_values_of(images)


def test_more_refusals(tmp_path: Path) -> None:
    for size in ("8", (8,), 8.0):
        with pytest.raises(UserError, match=r"size must be a number of pixels or \(height, width\)"):
            pixel_values_of(PICTURE, size=size)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="resizes images of 8 bits only"):
        pixel_values_of(EXPECTED, size=8)
    with pytest.raises(UserError, match="must go from a smaller to a larger value"):
        pixel_values_of(EXPECTED, value_range=(1, -1))
    (tmp_path / "cut.png").write_bytes(file_of(PICTURE, "PNG")[:-60])
    for images in (tmp_path / "cut.png", Image.open(tmp_path / "cut.png")):
        with pytest.raises(UserError, match="damaged"):
            pixel_values_of(images)


def test_reconstructions_are_clamped_on_request() -> None:
    x = torch.tensor([-3.0, -0.5, 2.0]).view(1, 1, 3)
    assert torch.equal(only(x, clamp=True)[2], torch.tensor([[-1.0, -0.5, 1.0]]))
    for images in (x.abs(), x.abs() * 100):
        with pytest.raises(UserError, match="without negative values"):
            pixel_values_of(images, clamp=True)
    for value in (torch.nan, torch.inf, -torch.inf):
        with pytest.raises(UserError, match="must be in"):
            pixel_values_of(torch.tensor([-1.0, value]).view(1, 1, 2), clamp=True)


def test_batches_have_one_size() -> None:
    parts = [torch.full((3, 4, 4), float(i)) for i in range(5)]
    found = list(batches_of_one_size(parts, 2))
    assert [len(batch) for batch in found] == [2, 2, 1]
    assert torch.equal(torch.cat(found), torch.stack(parts))
    with pytest.raises(UserError, match="height x width 4x4, 4x6; give size="):
        batches_of_one_size([*parts, torch.zeros(3, 4, 6)], 2)
    with pytest.raises(UserError, match="batch_size is 0"):
        batches_of_one_size(parts, 0)


def test_uint8_image_is_the_inverse() -> None:
    assert np.array_equal(np.array(to_uint8_image(EXPECTED)), LEVELS)


def test_range_has_room_for_the_overshoot_of_resizing() -> None:
    RGB.require_range(torch.tensor([-1.5, 1.5]))
    for value in (-1.51, 1.51):
        with pytest.raises(UserError, match=r"must be in \[-1, 1\].*encode_images"):
            RGB.require_range(torch.tensor([0.0, value]))
    for value in (torch.nan, torch.inf, -torch.inf):
        with pytest.raises(UserError, match="must be finite"):
            RGB.require_range(torch.tensor([0.0, value]))
        with images_in_range():
            RGB.require_range(torch.tensor([0.0, value]))
    RGB.require_range(torch.zeros(0, 3, 4, 4))
