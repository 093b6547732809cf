"""A named pipe among the images costs one image, and no time."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from ldm_ae.data import BadImage, EvaluationLoader, ImageTransform, open_source
from ldm_ae.data.regular_files import read_regular_file, read_regular_text
from ldm_ae.errors import UserError


@pytest.fixture(autouse=True)
def _no_standstill() -> Iterator[None]:
    signal.alarm(30)
    yield
    signal.alarm(0)


def test_a_pipe_among_images_is_a_bad_image(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "c.txt")
    for workers in (0, 1):
        loader = EvaluationLoader(
            open_source(tmp_path), ImageTransform(size=8), batch_size=4, workers=workers, bad_share=1
        )
        assert [key for batch in loader for key in batch.keys] == ["a.png", "b.png"]
        reason = "a named pipe, not a regular file"
        assert loader.rejected == {"c.png": reason, "pipe.png": reason}


def test_other_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="a device, not a regular file"):
        read_regular_file(Path("/dev/zero"))
    with pytest.raises(BadImage, match="a folder, not a regular file"):
        read_regular_file(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        with pytest.raises(OSError, match="No such device"):
            read_regular_file(tmp_path / "s")
    with pytest.raises(FileNotFoundError):
        read_regular_file(tmp_path / "missing")


def test_regular_files_and_links_to_them_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"one\r\ntwo \xc3\xa9\n")
    (tmp_path / "link").symlink_to("file")
    assert read_regular_file(tmp_path / "link") == b"one\r\ntwo \xc3\xa9\n"
    assert read_regular_text(tmp_path / "link") == "one\ntwo é\n"


def test_a_tar_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.tar")
    for location in (tmp_path, tmp_path / "x.tar"):
        with pytest.raises(UserError, match=r"x\.tar is not a regular file"):
            open_source(location)


@pytest.mark.parametrize("extension", ["jfif", "jp2", "mpo", "avif", "JPE"])
def test_files_of_these_extensions_are_images(extension: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / f"a.{extension}", format="JPEG")
    source = open_source(tmp_path)
    assert source.key(0) == f"a.{extension}"
