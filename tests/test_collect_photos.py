"""`scripts/collect_photos.py`: photos at several scales, without duplicates, with their licences, in other colours."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ldm_ae.core.errors import UserError
from tests.scripts import load_script

script = load_script("collect_photos")


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


def picture(seed: int, size: tuple[int, int], alpha: bool = False) -> Image.Image:
    """Blurred noise in many colours; with alpha, a disc of it."""
    values = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)
    if alpha:
        mask = Image.new("L", size)
        ImageDraw.Draw(mask).ellipse((0, 0, size[0] - 1, size[1] - 1), fill=255)
        image.putalpha(mask)
    return image


COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: A
License: GPL-2+

Files: images/land/*
 images/more/*
Copyright: B
License: CC-BY-4.0
 The text.
"""


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder with two packages that were downloaded before: wallpapers with a copyright file, and stamps."""
    walls = tmp_path / "packages" / "walls"
    land = walls / "files/usr/share/walls/images/land"
    notice = walls / "files/usr/share/doc/walls/copyright"
    stamps = tmp_path / "packages" / "stamps" / "files" / "stamps"
    for folder in (land, notice.parent, stamps, stamps / "cartoon"):
        folder.mkdir(parents=True)
    notice.write_text(COPYRIGHT)
    (walls / "walls_1.2_all.deb").write_bytes(b"walls")
    (tmp_path / "packages" / "stamps" / "stamps-3.4.tgz").write_bytes(b"stamps")
    picture(0, (1500, 1440)).save(land / "a.png")
    picture(0, (750, 720)).save(land / "a-again.jpg")
    picture(1, (400, 360)).save(land / "b.png")
    picture(2, (100, 100)).save(land / "small.png")
    Image.new("RGB", (400, 400), "blue").save(land / "flat.png")
    picture(3, (200, 200), alpha=True).save(stamps / "apple.png")
    picture(4, (200, 200), alpha=True).save(stamps / "cartoon" / "pear.png")
    return tmp_path / "packages"


def test_photos_are_collected_at_scales_without_duplicates_and_with_their_licence(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "open_source", lambda name: [])
    chosen = (
        script.Package("debian", "walls", ("**/land/*",)),
        script.Package("npm", "stamps", ("**/*.png",), "public domain"),
    )
    counts = script.collect(tmp_path / "one", chosen, cache=packages)
    script.collect(tmp_path / "two", chosen, cache=packages)
    files = {path.name: path.read_bytes() for path in (tmp_path / "one/photos").iterdir()}
    assert counts == {"photos": 3, "duplicates": 1, "flat or small": 2, "images": len(files)}
    versions = sorted(name.split("-", 2)[2] for name in files if "recoloured" not in name and "walls" in name)
    assert versions == ["352.jpg", "352.jpg", "704.jpg", "crop0.jpg", "crop1.jpg"]
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "two/photos").iterdir()}
    with Image.open(tmp_path / "one/photos/walls-0000-704.jpg") as image:
        assert image.size == (733, 704)
    walls, stamps = json.loads((tmp_path / "one/sources.json").read_text())["sources"]
    assert [walls["version"], stamps["version"]] == ["1.2", "3.4"]
    assert walls["sha256"] == hashlib.sha256(b"walls").hexdigest()
    assert [Path(photo["file"]).name for photo in walls["photos"]] == ["a.png", "b.png"]
    assert {photo["licence"] for photo in walls["photos"]} == {"CC-BY-4.0"}
    assert [photo["file"] for photo in stamps["photos"]] == ["stamps/apple.png"]


def test_a_photo_without_a_licence_is_refused(packages: Path) -> None:
    package = script.Package("npm", "stamps", ("**/*.png",))
    licence = script.licences(package, packages / "stamps/files")
    with pytest.raises(UserError, match=r"names no licence of stamps/apple\.png"):
        licence(packages / "stamps/files/stamps/apple.png")


def test_missing_programs_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no-such-program not found"):
        script.run(["no-such-program", "package"], tmp_path)
