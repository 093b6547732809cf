"""`ldm-ae encode` with several sizes."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from ldm_ae.cli import main
from ldm_ae.core.terminal import progress_bar
from ldm_ae.latents import LatentStore

Captured = pytest.CaptureFixture[str]


def encode(model: Path, images: Path, store: Path, *options: str) -> int:
    return main(["encode", str(model), str(images), str(store), "--workers", "0", "--device", "cpu", *options])


@pytest.mark.slow
def test_encode_accepts_sizes_or_an_area(
    tiny_model_folder: Path, image_folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    assert encode(tiny_model_folder, image_folder, tmp_path / "sizes", "--sizes", "32x32, 32x48,48x32") == 0
    sizes, summary = capsys.readouterr().out.splitlines()[:2]
    assert "12 images, 0 unusable" in sizes
    assert summary == "32x32: 8, 48x32: 4; 9.1% of each image cropped off on average"
    area = ("--area", "40x40", "--multiple", "16", "--max-ratio", "2")
    assert encode(tiny_model_folder, image_folder, tmp_path / "area", *area) == 0
    assert LatentStore(tmp_path / "area").request.transform["sizes"] == [[32, 32], [32, 48], [48, 32]]
    assert "12 images" in capsys.readouterr().out
    # One size is what --size gives.
    assert encode(tiny_model_folder, image_folder, tmp_path / "one", "--sizes", "64x64,64x64") == 0
    assert "12 images are smaller than their bucket and were enlarged" in capsys.readouterr().out
    assert encode(tiny_model_folder, image_folder, tmp_path / "one", "--size", "64") == 0
    assert "is already complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sizes", "32"], "--sizes has '32'; give height x width in pixels, such as 256x192"),
        (["--sizes", "32x32,"], "--sizes has ''"),
        (["--sizes", "32x30,32x32"], "height x width 32x30 is not divisible"),
        (["--sizes", "32x0,32x32"], "height x width 32x0 is not divisible"),
        (["--sizes", "32x32", "--area", "32x32"], "--area and --sizes exclude each other"),
        (["--area", "32x32", "--size", "32"], "--size and --area exclude each other"),
        (["--sizes", "32x32,64x64", "--resize", "64"], "--resize and --sizes exclude each other"),
        (["--area", "32x32"], "an area of 32x32 is too small for sides that are multiples of 64"),
        (["--area", "32x32", "--multiple", "0"], "multiples of 0"),
        (["--area", "32x32", "--multiple", "2"], "is not divisible by the model's downsample factor 4"),
        (["--size", "32", "--multiple", "2"], "--multiple and --max-ratio have no effect without --area"),
    ],
)
def test_invalid_size_options_are_refused_in_one_line(
    options: list[str], words: str, tiny_model_folder: Path, image_folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    assert encode(tiny_model_folder, image_folder, tmp_path / "store", *options) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "store").exists()


def test_progress_bar_shows_images_per_second_and_time_left(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    import rich.console

    monkeypatch.setattr(rich.console.Console, "is_terminal", True)
    monkeypatch.setattr("ldm_ae.core.terminal._is_terminal", lambda _: True)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("encoding", None) as progress:
        for done in range(1, 5):
            progress(done, 8)
            time.sleep(0.02)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    last = shown.splitlines()[-1]
    assert "encoding" in last
    assert "4/8" in last
    speed = re.search(r"([\d.]+) images/s", last)
    assert speed is not None
    assert 0 < float(speed[1]) < 60  # four in at least 0.08 s
    assert re.search(r"left 0:00:0\d", last)
