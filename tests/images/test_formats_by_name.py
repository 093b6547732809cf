"""Which names of files are images'."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from ldm_ae.data import open_source


@pytest.mark.parametrize("extension", ["jfif", "jp2", "mpo", "avif", "JPE"])
def test_files_of_these_extensions_are_images(extension: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / f"a.{extension}", format="JPEG")
    source = open_source(tmp_path)
    assert source.key(0) == f"a.{extension}"
