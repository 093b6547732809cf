"""Files of images other than RGB in 8 bits, which read back as they were."""

from __future__ import annotations

import importlib.util
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_ae.core.errors import UserError
from ldm_ae.images import writing
from ldm_ae.images.pixels import GREY, RGB, RGBA, PixelSpec
from ldm_ae.images.sample_files import SampleDecoding
from ldm_ae.images.writing import FileKind, encode_image, kind_of_files

GREY16 = PixelSpec(channels=1, meaning="grey", bits=16)
RGBA16 = PixelSpec(channels=4, meaning="rgba", bits=16)
FIVE = PixelSpec(channels=5, meaning="channels", bits=16)
FLOATS = PixelSpec(channels=2, meaning="channels", bits=0, missing=math.nan)


@pytest.mark.parametrize("kind", ["png", "tif", "npy"])
@pytest.mark.parametrize("pixels", [GREY, RGBA, GREY16, RGBA16, FIVE, FLOATS], ids=str)
def test_files_read_back_as_written(kind: FileKind, pixels: PixelSpec) -> None:
    if kind == "tif" and importlib.util.find_spec("tifffile") is None:
        pytest.skip("tifffile is not installed")
    if kind == "png" and pixels.meaning == "channels":
        pytest.skip("PNG cannot hold these images")
    values = torch.linspace(-1, 1, pixels.channels * 30).view(pixels.channels, 5, 6)
    stored = pixels.denormalize(values).numpy()
    found = SampleDecoding(pixels=pixels)(encode_image(stored, pixels, kind)).image.planes
    assert np.array_equal(found, stored)
    assert found.dtype == stored.dtype


def test_rgb_is_png_and_other_channels_are_arrays() -> None:
    assert [kind_of_files(spec) for spec in (RGB, GREY16, RGBA16, FIVE, FLOATS)] == ["png"] * 3 + ["npy"] * 2
    with pytest.raises(UserError, match=r"PNG cannot hold images that are channels \(5 channels .*; write tif or npy"):
        kind_of_files(FIVE, "png")


def test_missing_tifffile_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"install ldm_ae\[tiff\], or write npy"):
        kind_of_files(FIVE, "tif")


def test_png_of_16_bits_is_read_by_pillow_too() -> None:
    stored = np.arange(12, dtype=np.uint16).reshape(1, 3, 4) * 5000
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_image(stored, GREY16, "png")))), stored[0])
