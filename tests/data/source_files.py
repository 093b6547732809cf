"""Small sources of each kind, written for the tests of this folder."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from scripts.reliability.odd_pictures import encoded
from tests.pictures import smooth_picture


def image(seed: int) -> bytes:
    return encoded(smooth_picture(seed, 24, 16), "PNG")


def write_folder(root: Path) -> str:
    for i in range(4):
        path = root / "images" / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(i))
    return str(root / "images")


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_webdataset(root: Path) -> str:
    for shard in range(2):
        members: dict[str, bytes] = {}
        for i in range(2):
            name = f"{shard}{i}"
            members |= {f"{name}.png": image(10 * shard + i), f"{name}.cls": b"7\n", f"{name}.txt": b"a picture "}
        write_tar(root / "shards" / f"{shard:03d}.tar", members)
    return str(root / "shards")


def dataset(rows: int = 3, name: str = "image", **columns: list) -> Any:
    datasets = pytest.importorskip("datasets")
    features = {
        name: datasets.Image(),
        "label": datasets.ClassLabel(names=["a", "b"]),
        "text": datasets.Value("string"),
    }
    content = {
        name: [{"bytes": image(i), "path": None} for i in range(rows)],
        "label": [i % 2 for i in range(rows)],
        "text": [f"picture {i}" for i in range(rows)],
    } | columns
    return datasets.Dataset.from_dict(content, features=datasets.Features(features))


def write_hf_datasets(root: Path) -> str:
    dataset().save_to_disk(str(root / "saved"))
    return str(root / "saved")


def write_parquet(root: Path) -> str:
    (root / "tables").mkdir()
    dataset().to_parquet(str(root / "tables/part.parquet"))
    return str(root / "tables")


def write_digits(root: Path) -> str:
    pytest.importorskip("sklearn")
    return "digits:test"


def write_sprites(root: Path) -> str:
    return "sprites:100-105"


def write_photos(root: Path) -> str:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    return "photos:train"
