"""Cache files that lie beside the images: the names under which sd-scripts and musubi-tuner look for them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm_ae.core.errors import UserError
from ldm_ae.data import BucketTransform
from ldm_ae.latents import LatentStore
from ldm_ae.latents.conversion.convert import convert_store
from ldm_ae.latents.conversion.file_names import file_stem, stem
from ldm_ae.models import Autoencoder
from tests.latents.helpers import encode, synthetic_store


def photo(path: Path, size: tuple[int, int], orientation: int) -> Path:
    """A JPEG of `size` in its header that EXIF turns."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(orientation).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def name_of_sd_scripts(path: Path) -> str:
    """`get_latents_npz_path` of sd-scripts, whose `get_image_size` takes the header's width and height, as Pillow."""
    with Image.open(path) as image:
        width, height = image.size
    return os.path.splitext(path)[0] + f"_{width:04d}x{height:04d}_sd.npz"


def test_rotated_photos_have_the_file_names_of_sd_scripts(tiny_model: Autoencoder, tmp_path: Path) -> None:
    photos = [photo(tmp_path / "photos" / f"p{o}.jpg", (60, 40), o) for o in range(1, 9)]
    encode(tiny_model, tmp_path / "photos", tmp_path / "store")
    assert LatentStore(tmp_path / "store").index["orientation"].to_pylist() == list(range(1, 9))
    assert LatentStore(tmp_path / "store").index["width"].to_pylist() == [60] * 4 + [40] * 4
    summary = convert_store(tmp_path / "store", tmp_path / "photos2", "kohya", arch="sd")
    assert summary.images == 8
    for path in photos:
        found = tmp_path / "photos2" / Path(name_of_sd_scripts(path)).name
        assert found.is_file(), found
        with np.load(found) as cache:  # SDXL's conditioning is about the upright image
            assert cache["original_size"].tolist() == ([60, 40] if int(path.stem[1]) < 5 else [40, 60])


def test_rotated_photos_outside_their_bucket_are_skipped_and_listed(tiny_model: Autoencoder, tmp_path: Path) -> None:
    """sd-scripts puts a photo that lies on its side into a landscape bucket, where upright latents do not fit."""
    for orientation in (1, 3, 6):
        photo(tmp_path / "photos" / f"p{orientation}.jpg", (60, 40), orientation)
    encode(tiny_model, tmp_path / "photos", tmp_path / "store", transform=BucketTransform([(48, 32), (32, 48)]))
    summary = convert_store(tmp_path / "store", tmp_path / "out", "kohya", arch="sd")
    assert summary.images == 2
    assert [warning for warning in summary.warnings if "p6.jpg" in warning] == [
        "1 images are skipped, the first is p6.jpg: they are not square and EXIF rotates them, which sd-scripts does "
        "not apply; rotate the files themselves, such as with `exiftran -ai`, and encode them again"
    ]
    assert json.loads((tmp_path / "out" / "ldm_ae.json").read_text())["left_out"] == ["p6.jpg"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.npz")) == [
        "p1_0060x0040_sd.npz",
        "p3_0060x0040_sd.npz",
    ]
    with pytest.raises(UserError, match="all 1 images are rotated by EXIF, which sd-scripts does not apply"):
        convert_store(tmp_path / "store", tmp_path / "none", "kohya", arch="sd", bucket="48x32")


def test_musubi_file_names_have_the_upright_size(tiny_model: Autoencoder, tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "p6.jpg", (60, 40), 6)
    encode(tiny_model, tmp_path / "photos", tmp_path / "store")
    convert_store(tmp_path / "store", tmp_path / "out", "musubi", arch="zi")
    assert [path.name for path in (tmp_path / "out").glob("*.safetensors")] == ["p6_0040x0060_zi.safetensors"]


def test_names_with_backslashes_and_non_utf8_bytes_are_kept(tiny_model: Autoencoder, tmp_path: Path) -> None:
    names = [b"plain.jpg", b"back\\slash.jpg", b"caf\xe9.jpg", "größe.jpg".encode()]
    folder = tmp_path / "photos"
    for name in names:
        made = photo(folder / "next.jpg", (60, 40), 1)
        try:
            made.rename(os.fsdecode(os.path.join(os.fsencode(folder), name)))
        except OSError:  # a file system that accepts only Unicode
            pytest.skip("this file system takes no such name")
    encode(tiny_model, folder, tmp_path / "store")
    for kind, arch in (("kohya", "sd"), ("musubi", "zi")):
        convert_store(tmp_path / "store", tmp_path / kind, kind, arch=arch)
    found = {name.rpartition(b"_")[0].rpartition(b"_")[0] for name in os.listdir(os.fsencode(tmp_path / "kohya"))}
    stems = {name.removesuffix(b".jpg") for name in names}
    assert stems == found - {b""}
    found = {name.rpartition(b"_")[0].rpartition(b"_")[0] for name in os.listdir(os.fsencode(tmp_path / "musubi"))}
    assert stems == found - {b""}


def test_pixart_file_names_contain_the_unchanged_key(tmp_path: Path) -> None:
    content = synthetic_store(tmp_path / "store", buckets={"32x32": 2})
    store = LatentStore(content.path)
    store._rows = store._rows.set_column(0, store._rows.schema.field(0), [["a\\b.png", "caf\\xe9.png"]])
    convert_store(store, tmp_path / "out", "pixart")
    listed = json.loads((tmp_path / "out" / "InternData" / "data_info.json").read_text(encoding="utf-8"))
    assert [item["path"] for item in listed] == ["a\\b.png", "caf\\xe9.png"]


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("a/b.c.jpg", "a/b.c"),
        ("back\\slash.png", "back\\slash"),
        ("caf\\xe9.png", "caf\udce9"),
        ("\\xff\\xfe/x.png", "\udcff\udcfe/x"),
        ("\\xc3\\xa9.png", "\\xc3\\xa9"),  # UTF-8 of é would be in the key as é
        ("\\x41.png", "\\x41"),  # ASCII is never escaped
    ],
)
def test_escaped_bytes_in_keys_are_restored_in_file_names(key: str, name: str) -> None:
    assert file_stem(key) == name
    assert stem(key) == key.rpartition(".")[0]
