"""Which names of files are images'."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from ldm_ae.data import BadImage, decode_image, open_source


@pytest.mark.parametrize("extension", ["jfif", "jp2", "mpo", "avif", "JPE"])
def test_files_of_these_extensions_are_images(extension: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / f"a.{extension}", format="JPEG")
    source = open_source(tmp_path)
    assert source.key(0) == f"a.{extension}"


@pytest.mark.parametrize(
    ("data", "name"), [(b"\0" * 128 + b"DICM" + b"\0" * 64, "DICOM"), (b"\x93NUMPY\1\0" + b"\0" * 64, "a NumPy array")]
)
def test_files_of_other_images_are_named_for_rgb_models(data: bytes, name: str) -> None:
    with pytest.raises(BadImage, match=f"it is {name}, which models of other images than RGB in 8 bits read"):
        decode_image(data)
