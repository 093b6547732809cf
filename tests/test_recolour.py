"""`scripts/recolour.py`: copies of photos with the same brightness and other colours."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.scripts import load_script

script = load_script("recolour")


def photo() -> Image.Image:
    """Muted colours, so that every factor in the script's range stays within RGB."""
    values = np.random.default_rng(0).integers(100, 130, (16, 24, 3), dtype=np.uint8)
    return Image.fromarray(values)


def chroma(image: Image.Image) -> np.ndarray:
    values = np.asarray(image.convert("YCbCr")).astype(float)
    return values[..., 1] - 128 + 1j * (values[..., 2] - 128)


@pytest.mark.parametrize(("angle", "factor"), [(0.0, 1.0), (1.0, 1.0), (-2.5, 0.5), (math.pi, 1.8)])
def test_recolour_preserves_brightness_and_rotates_hues(angle: float, factor: float) -> None:
    image = script.recolour(photo(), angle, factor)
    before, after = (np.asarray(i.convert("L")).astype(int) for i in (photo(), image))
    assert abs(before - after).max() <= 2
    expected = chroma(photo()) * factor * np.exp(1j * angle)
    assert abs(chroma(image) - expected).max() < 3  # of 255: both ways round to bytes


def test_recoloured_copies_are_written_beside_the_originals(tmp_path: Path) -> None:
    images = tmp_path / "images" / "more"
    images.mkdir(parents=True)
    photo().save(images / "a.jpg")
    photo().save(tmp_path / "images" / "b.png")
    for out in ("one", "two"):
        script.main([str(tmp_path / "images"), str(tmp_path / out)])
    script.main([str(tmp_path / "images"), str(tmp_path / "other"), "--seed", "1"])
    found = {p.relative_to(tmp_path / "one").as_posix(): p.read_bytes() for p in (tmp_path / "one").rglob("*.*")}
    assert set(found) == {"photos/more/a.jpg", "photos/b.png", "recoloured/more/a.png", "recoloured/b.png"}
    assert found["photos/more/a.jpg"] == (images / "a.jpg").read_bytes()
    for name, content in found.items():
        assert (tmp_path / "two" / name).read_bytes() == content
        assert ((tmp_path / "other" / name).read_bytes() == content) == name.startswith("photos/")
    with Image.open(tmp_path / "one" / "recoloured" / "more" / "a.png") as copy:
        assert copy.size == (24, 16)


def test_colliding_output_names_are_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "a.png"):
        photo().save(tmp_path / "images" / name)
    script.main([str(tmp_path / "images"), str(tmp_path / "out")])
    assert sorted(p.name for p in (tmp_path / "out" / "recoloured").iterdir()) == ["a-2.png", "a.png"]
    assert sorted(p.suffix for p in (tmp_path / "out" / "photos").iterdir()) == [".jpg", ".png"]
