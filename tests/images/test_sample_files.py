"""Files of grey, RGBA, 16 bits, floating point and several bands: read at full depth, or refused with both sides."""

from __future__ import annotations

import importlib.util
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from ldm_ae.data import BadImage, BucketTransform, EvaluationLoader, ImageTransform, WholeTransform, open_source
from ldm_ae.images.missing import MISSING
from ldm_ae.images.pixels import GREY, RGB, RGBA, PixelSpec
from ldm_ae.images.png16 import encode_png16
from ldm_ae.images.transforms import described_options

GREY16 = PixelSpec(channels=1, meaning="grey", bits=16)
RGB16 = PixelSpec(channels=3, meaning="rgb", bits=16)
RGBA16 = PixelSpec(channels=4, meaning="rgba", bits=16)
FIVE = PixelSpec(channels=5, meaning="channels", bits=16)
FLOATS = PixelSpec(channels=5, meaning="channels", bits=0, low=(-1.0,), high=(3.0,), missing=math.nan)
needs_tifffile = pytest.mark.skipif(importlib.util.find_spec("tifffile") is None, reason="tifffile is not installed")


def ramp(channels: int, dtype: Any = np.uint16, height: int = 12, width: int = 10) -> NDArray[Any]:
    """(C, H, W) with all values different, up to the type's largest."""
    count = channels * height * width
    most = np.iinfo(dtype).max if np.dtype(dtype).kind in "iu" else 1.0
    return np.linspace(0, most, count).astype(dtype).reshape(channels, height, width)


def saved(array: NDArray[Any] | Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(buffer, **options)
    return buffer.getvalue()


def npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def tiff(array: NDArray[Any], **options: Any) -> bytes:
    import tifffile

    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def read(data: bytes, pixels: PixelSpec, **options: Any) -> torch.Tensor:
    transform = ImageTransform(size=(12, 10), pixels=pixels, **options)
    return transform(transform.decode(data).image).pixel_values


@pytest.mark.parametrize("pixels", [GREY16, RGB16, RGBA16], ids=str)
def test_png_of_16_bits_is_read_at_full_depth(pixels: PixelSpec) -> None:
    stored = ramp(pixels.channels)
    found = read(encode_png16(stored), pixels)
    assert np.array_equal(pixels.denormalize(found).numpy(), stored)


def test_grey_png_and_tiff_of_pillow_are_read_at_full_depth() -> None:
    stored = ramp(1)
    for name in ("PNG", "TIFF"):
        data = saved(Image.fromarray(stored[0]), format=name)
        assert np.array_equal(GREY16.denormalize(read(data, GREY16)).numpy(), stored)
    signed = PixelSpec(channels=1, meaning="grey", bits=16, low=(-1024.0,), high=(3071.0,))
    values = (stored.astype(np.int32) // 18 - 700).astype(np.int16)
    assert np.array_equal(signed.denormalize(read(npy(values[0]), signed)).numpy(), values)


def test_float_tiff_has_the_stated_range() -> None:
    pixels = PixelSpec(channels=1, meaning="grey", bits=0, low=(-5.0,), high=(5.0,))
    stored = (ramp(1, np.float32) * 10 - 5)[0]
    found = read(saved(Image.fromarray(stored), format="TIFF"), pixels)
    assert torch.allclose(found[0], torch.from_numpy(stored / 5), atol=1e-6)


@needs_tifffile
@pytest.mark.parametrize("layout", ["contig", "separate", "pages"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_of_several_bands_is_read(layout: str, compression: str | None) -> None:
    stored = ramp(5)
    if layout == "pages":
        data = tiff(stored, photometric="minisblack", compression=compression)
    elif layout == "contig":
        data = tiff(stored.transpose(1, 2, 0).copy(), photometric="minisblack", planarconfig="contig",
                    compression=compression)  # fmt: skip
    else:
        data = tiff(stored, photometric="minisblack", planarconfig="separate", compression=compression)
    assert np.array_equal(FIVE.denormalize(read(data, FIVE)).numpy(), stored)


@needs_tifffile
def test_rgb_tiff_of_16_bits_is_read_at_full_depth() -> None:
    stored = ramp(3)
    data = tiff(stored.transpose(1, 2, 0).copy(), photometric="rgb")
    assert np.array_equal(RGB16.denormalize(read(data, RGB16)).numpy(), stored)


def test_arrays_are_read_in_both_orders_of_axes() -> None:
    stored = ramp(5, np.float32)
    packed = io.BytesIO()
    np.savez_compressed(packed, image=stored.astype(np.float64))
    expected = FLOATS.normalize(torch.from_numpy(stored))
    for data in (npy(stored), npy(stored.transpose(1, 2, 0)), npy(stored.astype(">f4")), packed.getvalue()):
        assert torch.equal(read(data, FLOATS), expected)


def test_rgba_keeps_transparency_and_makes_other_images_opaque() -> None:
    stored = ramp(4, np.uint8)
    rgba = stored.transpose(1, 2, 0)
    assert np.array_equal(RGBA.denormalize(read(saved(rgba, format="PNG"), RGBA)).numpy(), stored)
    opaque = RGBA.denormalize(read(saved(np.ascontiguousarray(rgba[..., :3]), format="PNG"), RGBA)).numpy()
    assert np.array_equal(opaque[:3], stored[:3])
    assert (opaque[3] == 255).all()
    grey = read(saved(np.ascontiguousarray(rgba[..., 0]), format="PNG"), RGBA)
    assert torch.equal(grey[0], grey[2])


def test_hidden_colour_does_not_show_at_resized_edges() -> None:
    stored = np.zeros((24, 20, 4), np.uint8)
    stored[..., 1] = 255  # hidden green
    stored[:, :10] = (255, 0, 0, 255)
    found = read(saved(stored, format="PNG"), RGBA)
    visible = found[3] > -0.99
    assert found[0][visible].min() > 0.99
    assert found[1][visible].max() < -0.99
    assert found[1][found[3] == -1.0].max() > 0.9  # as stored


def test_missing_data_travels_through_resizing_and_flips() -> None:
    stored = np.ones((24, 20, 5), np.float32)
    stored[:12, :, 2] = math.nan
    found = read(npy(stored), FLOATS)
    assert (found[2, :6] == MISSING).all()
    assert torch.allclose(found[2, 6:], torch.zeros(()), atol=1e-5)
    assert torch.allclose(found[[0, 1, 3, 4]], torch.zeros(()), atol=1e-5)


def test_crop_without_data_is_a_bad_image() -> None:
    with pytest.raises(BadImage, match="all of its samples are missing"):
        read(npy(np.full((24, 20, 5), math.nan, np.float32)), FLOATS)


def test_orientation_is_undone() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = ramp(1, np.uint8, height=10, width=12)[0]
    found = read(saved(stored, format="PNG", exif=exif), GREY)
    assert np.array_equal(GREY.denormalize(found)[0].numpy(), np.rot90(stored, -1))


def test_resized_grey_of_8_bits_is_close_to_pillow() -> None:
    stored = ramp(1, np.uint8, height=48, width=40)[0]
    plain = np.asarray(Image.fromarray(stored).resize((10, 12), Image.Resampling.BICUBIC))
    assert np.abs(GREY.denormalize(read(saved(stored, format="PNG"), GREY))[0].numpy().astype(int) - plain).max() <= 1
    adm = ImageTransform(size=10, crop="adm", pixels=GREY)
    assert adm(adm.decode(saved(stored, format="PNG")).image).pixel_values.shape == (1, 10, 10)


@pytest.mark.parametrize(
    ("data", "pixels", "words"),
    [
        (saved(ramp(3, np.uint8).transpose(1, 2, 0).copy(), format="PNG"), GREY, r"3 channels, and .* grey \(1 chan"),
        (saved(ramp(1, np.uint8)[0], format="PNG"), GREY16, r"samples of type uint8, and .* of 16 bits"),
        (encode_png16(ramp(1)), GREY, r"samples of type uint16, and .* grey \(1 channel from 0 to 255\)"),
        (encode_png16(ramp(3)), RGBA, r"samples of type uint16|3 channels"),
        (npy(ramp(1)[0]), PixelSpec(channels=1, meaning="grey", bits=16, high=(4095.0,)),
         r"samples from 0 to 65535 in grey, and .* from 0 to 4095"),
        (npy(ramp(5, np.float32) * 4), FLOATS, r"samples from .* to 3.19866 in channel 3, and .* from -1 to 3"),
        (npy(np.full((5, 12, 10), np.inf, np.float32)), FLOATS, "NaN or infinite samples, and"),
        (npy(ramp(4)), FIVE, r"4 channels, and the images are channels \(5 channels of 16 bits"),
        (npy(ramp(5, np.float32)), FIVE, "samples of type float32, and"),
        (npy(ramp(5)[None]), FIVE, r"an array of shape \(1, 5, 12, 10\), and"),
        (npy(np.array([{}])), FIVE, "an array of Python objects, which are never loaded"),
        (npy(ramp(5))[:-9], FIVE, "damaged: "),
        (b"", FIVE, "empty file"),
        (b"GIF89a", FIVE, "damaged|not an image"),
        (saved(ramp(2, np.uint8).transpose(1, 2, 0).copy(), format="PNG"), GREY, "transparency|2 channels"),
    ],
)  # fmt: skip
def test_other_files_are_bad_images_with_both_sides(data: bytes, pixels: PixelSpec, words: str) -> None:
    with pytest.raises(BadImage, match=words) as error:
        read(data, pixels)
    assert "\n" not in str(error.value)


def test_large_arrays_are_refused_before_they_are_expanded() -> None:
    packed = io.BytesIO()
    np.savez_compressed(packed, np.zeros((5, 300, 300), np.uint16))
    for data in (packed.getvalue(), npy(np.zeros((5, 300, 300), np.uint16))):
        with pytest.raises(BadImage, match="max_pixels sets the limit"):
            read(data, FIVE, max_pixels=50_000 if data.startswith(b"\x93") else 100)


def test_clip_clamps_values_outside_of_the_limits() -> None:
    pixels = PixelSpec(channels=1, meaning="grey", bits=16, low=(100.0,), high=(4000.0,), clip=True)
    found = read(npy(ramp(1)[0]), pixels)
    assert (float(found.min()), float(found.max())) == (-1.0, 1.0)


def test_describe_names_other_images_alone() -> None:
    assert "pixels" not in ImageTransform(size=8).describe()
    transform = ImageTransform(size=8, pixels=FLOATS)
    assert transform.describe()["pixels"] == FLOATS.to_json()
    assert described_options(transform.describe())["pixels"] == FLOATS
    assert described_options(ImageTransform(size=8).describe())["pixels"] == RGB


def test_mixed_folder_is_loaded_with_reasons(tmp_path: Path) -> None:
    for name, data in {
        "a.png": encode_png16(ramp(1)),
        "b.png": saved(ramp(3, np.uint8).transpose(1, 2, 0).copy(), format="PNG"),
        "c.tif": saved(Image.fromarray(ramp(1)[0]), format="TIFF"),
    }.items():
        (tmp_path / name).write_bytes(data)
    loader = EvaluationLoader(
        open_source(tmp_path), ImageTransform(size=8, pixels=GREY16), batch_size=3, max_bad_fraction=1.0
    )
    (batch,) = loader
    assert batch.keys == ["a.png", "c.tif"]
    assert batch.pixel_values.shape == (2, 1, 8, 8)
    assert loader.rejected["b.png"].startswith("the file has 3 channels, and the images are grey")


def test_folder_of_arrays_is_a_source_of_several_sizes(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ramp(5))
    np.save(tmp_path / "b.npy", ramp(5, height=10, width=20))
    source = open_source(tmp_path)
    assert [source.key(index) for index in range(len(source))] == ["a.npy", "b.npy"]
    transform = BucketTransform([(8, 8), (8, 16)], pixels=FIVE)
    with source.open_image(1) as file:
        assert transform.choose(*transform.decode.size_of(file)) == (8, 16)
    whole = WholeTransform(None, multiple=4, pixels=FIVE)
    assert whole(whole.decode(source[0].data).image).pixel_values.shape == (5, 12, 8)
    Image.fromarray(ramp(1, np.uint8)[0]).save(tmp_path / "photo.png")
    assert len(open_source(tmp_path)) == 1


@needs_tifffile
@pytest.mark.parametrize("installed", [True, False])
def test_damaged_tiff_is_not_taken_for_one_that_needs_a_package(
    installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiff(ramp(5), photometric="minisblack", planarconfig="separate")
    tiled = tiff(np.zeros((32, 32, 5), np.uint16), photometric="minisblack", planarconfig="contig", tile=(16, 16))
    if not installed:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        for whole in (data, tiled, tiff(ramp(5), photometric="minisblack", planarconfig="separate", bigtiff=True)):
            with pytest.raises(BadImage, match=r"read by tifffile; install ldm_ae\[tiff\]"):
                read(whole, FIVE)
    for damaged in (data[:-100], tiled[:-100], data[:40], data[:4] + b"\xff\xff\xff\x7f" + data[8:], data[:8]):
        with pytest.raises(BadImage, match=r"^damaged: ") as error:
            read(damaged, FIVE)
        assert "install" not in str(error.value)
        assert len(str(error.value).splitlines()) == 1
