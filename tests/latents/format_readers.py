"""What the trainers do with their files, written from their own readers and not from our writers.

Each reader takes what was written and gives what its trainer gets, in the trainer's order. It fails on names, shapes
and dtypes that the trainer would not take.
"""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torchvision.datasets import DatasetFolder


@dataclass
class Read:
    """What a trainer gets. Lists are as long as the data set, or empty where the format has nothing of the kind."""

    names: list[str] = field(default_factory=list)
    """By which a sample is found in the store: its number, or the key without the extension."""
    latents: list[np.ndarray] = field(default_factory=list)
    latents_flip: list[np.ndarray] = field(default_factory=list)
    mean: list[np.ndarray] = field(default_factory=list)
    std: list[np.ndarray] = field(default_factory=list)
    mean_flip: list[np.ndarray] = field(default_factory=list)
    std_flip: list[np.ndarray] = field(default_factory=list)
    indices: list[np.ndarray] = field(default_factory=list)
    indices_flip: list[np.ndarray] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def add_moments(self, moments: np.ndarray, *, logarithmic: bool, flip: bool = False) -> None:
        assert moments.dtype == np.float32
        mean, second = np.split(moments, 2, axis=0)
        (self.mean_flip if flip else self.mean).append(mean)
        (self.std_flip if flip else self.std).append(np.exp(0.5 * second) if logarithmic else second)


def load_npy(data: bytes | Path) -> np.ndarray:
    return np.load(io.BytesIO(data) if isinstance(data, bytes) else data, allow_pickle=False)


def read_lightningdit(out: Path) -> Read:
    read = Read()
    for file in sorted(glob(os.path.join(out, "*.safetensors"))):
        assert os.path.basename(file).startswith("latents_rank00_shard")
        with safe_open(file, framework="pt", device="cpu") as shard:
            labels = shard.get_slice("labels")
            for row in range(labels.get_shape()[0]):
                read.names.append(str(len(read.names)))
                for key, found in (("latents", read.latents), ("latents_flip", read.latents_flip)):
                    value = shard.get_slice(key)[row : row + 1]
                    assert value.ndim == 4
                    found.append(value.squeeze(0).float().numpy())
                assert labels[row : row + 1].dtype == torch.int64
                read.labels.append(int(labels[row : row + 1]))
    statistics = torch.load(out / "latents_stats.pt", weights_only=True)
    assert statistics["mean"].shape == statistics["std"].shape == (1, read.latents[0].shape[0], 1, 1)
    read.extra = {"statistics_mean": statistics["mean"], "statistics_std": statistics["std"]}
    return read


def edm2_names(names: list[str]) -> list[str]:
    """EDM2 reads the files with an image's extension or .npy, sorted."""
    Image.init()
    return sorted(name for name in names if os.path.splitext(name)[1].lower() in Image.EXTENSION.keys() | {".npy"})


def edm2_labels(content: bytes, names: list[str]) -> list[int]:
    labels = json.loads(content)["labels"]
    if labels is None:
        return []
    array = np.array([dict(labels)[name] for name in names])
    assert array.ndim == 1
    assert array.dtype.kind == "i"
    return array.tolist()


def read_edm2_zip(out: Path) -> Read:
    read = Read()
    with zipfile.ZipFile(out) as archive:
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        names = edm2_names(archive.namelist())
        assert names == [f"{i // 1000:05d}/img-mean-std-{i:08d}.npy" for i in range(len(names))]
        for i, name in enumerate(names):
            read.names.append(str(i))
            read.add_moments(load_npy(archive.read(name)), logarithmic=False)
        read.labels = edm2_labels(archive.read("dataset.json"), names)
    return read


def files_below(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def read_repa(out: Path) -> Read:
    read = Read()
    images, features = (edm2_names(files_below(out / folder)) for folder in ("images", "vae-sd"))
    assert len(images) == len(features)
    assert images == [f"{i // 1000:05d}/img{i:08d}.png" for i in range(len(images))]
    assert features == [f"{i // 1000:05d}/img-mean-std-{i:08d}.npy" for i in range(len(images))]
    for i, (image, feature) in enumerate(zip(images, features, strict=True)):
        read.names.append(str(i))
        read.images.append(np.array(Image.open(out / "images" / image)))
        read.add_moments(load_npy(out / "vae-sd" / feature), logarithmic=False)
    read.labels = edm2_labels((out / "vae-sd" / "dataset.json").read_bytes(), features)
    return read


def read_repa_e(out: Path) -> Read:
    import h5py

    read = Read()
    with h5py.File(out / "images.h5", "r") as images, h5py.File(out / "vae.h5", "r") as features:
        image_names = edm2_names(json.loads((out / "images_h5.json").read_text()))
        feature_names = edm2_names(json.loads((out / "vae_h5.json").read_text()))
        assert "dataset.json" in json.loads((out / "vae_h5.json").read_text())
        for i, (image, feature) in enumerate(zip(image_names, feature_names, strict=True)):
            assert image == f"{i // 1000:05d}/img{i:08d}.png"
            assert feature == f"{i // 1000:05d}/img-mean-std-{i:08d}.npy"
            read.names.append(str(i))
            read.images.append(np.array(Image.open(io.BytesIO(np.array(images[image])))))
            read.add_moments(np.array(features[feature]), logarithmic=False)
        content = np.array(features["dataset.json"]).tobytes()
        read.labels = edm2_labels(content.decode("utf-8").encode(), feature_names)
        assert edm2_labels(np.array(images["dataset.json"]).tobytes(), image_names) == read.labels
    statistics = torch.load(out / "vae-latents-stats.pt", weights_only=True)
    scale, bias = statistics["latents_scale"], statistics["latents_bias"]
    assert scale.shape == bias.shape == (1, read.mean[0].shape[0], 1, 1)
    read.extra = {"statistics_mean": bias, "statistics_std": 1 / scale}
    return read


def read_mar(out: Path) -> Read:
    read = Read()
    folder = DatasetFolder(str(out), loader=None, extensions=(".npz",))  # type: ignore[arg-type]
    for path, label in folder.samples:
        read.names.append(str(int(Path(path).stem)))
        with np.load(path, allow_pickle=False) as data:
            read.add_moments(data["moments"], logarithmic=True)
            read.add_moments(data["moments_flip"], logarithmic=True, flip=True)
        read.labels.append(label)
    return read


def read_datasetfolder(out: Path) -> Read:
    read = Read()
    folder = DatasetFolder(str(out), np.load, (".npy",))
    for i, (path, label) in enumerate(folder.samples):
        read.names.append(str(int(Path(path).stem)))
        assert folder[i][0].dtype == np.float32
        read.latents.append(folder[i][0])
        read.labels.append(label)
    return read


def read_fast_dit(out: Path) -> Read:
    read = Read()
    features, labels = (sorted(os.listdir(out / f"imagenet256_{kind}")) for kind in ("features", "labels"))
    assert len(features) == len(labels)
    for i, (feature, label) in enumerate(zip(features, labels, strict=True)):
        latents = load_npy(out / "imagenet256_features" / feature)
        classes = load_npy(out / "imagenet256_labels" / label)
        assert latents.dtype == np.float32
        assert latents.shape[0] == 1
        assert (classes.dtype, classes.shape) == (np.dtype(np.int64), (1,))
        read.names.append(str(i))
        read.latents.append(latents[0])
        read.labels.append(int(classes[0]))
    return read


def read_maskdit(out: Path) -> Read:
    import lmdb

    read = Read()
    with lmdb.open(str(out / "train"), readonly=True, lock=False, create=False) as environment:
        transaction = environment.begin(write=False)
        count = int(transaction.get(b"length").decode("utf-8")) // 2

        def moments(i: int) -> np.ndarray:
            z = np.frombuffer(transaction.get(f"z-{i}".encode()), dtype=np.float32)
            side = int((z.size // 8) ** 0.5)  # 2C = 8
            return z.reshape([-1, side, side])

        for i in range(count):
            read.names.append(str(i))
            read.add_moments(moments(i), logarithmic=True)
            read.add_moments(moments(i + count), logarithmic=True, flip=True)
            label = int(transaction.get(f"y-{i}".encode()).decode("utf-8"))
            assert label == int(transaction.get(f"y-{i + count}".encode()).decode("utf-8"))
            read.labels.append(label)
    return read


def read_mds(out: Path) -> Read:
    read = Read()
    index = json.loads((out / "index.json").read_text())
    assert index["version"] == 2
    for shard in index["shards"]:
        assert (shard["version"], shard["format"], shard["compression"], shard["zip_data"]) == (2, "mds", None, None)
        assert shard["column_names"] == sorted(shard["column_names"])
        data = (out / shard["raw_data"]["basename"]).read_bytes()
        assert len(data) == shard["raw_data"]["bytes"]
        assert struct.unpack_from("<I", data) == (shard["samples"],)
        for i in range(shard["samples"]):
            begin, end = struct.unpack_from("<II", data, 4 * (1 + i))
            at = begin + 4 * len(shard["column_names"])
            sample = {}
            for number, (name, encoding) in enumerate(
                zip(shard["column_names"], shard["column_encodings"], strict=True)
            ):
                assert shard["column_sizes"][number] is None
                (size,) = struct.unpack_from("<I", data, begin + 4 * number)
                sample[name] = data[at : at + size].decode("utf-8") if encoding == "str" else data[at : at + size]
                at += size
            assert at == end
            latents = np.frombuffer(sample["latents_32"], dtype=np.float16).reshape(-1, 8, 8)
            read.names.append(str(len(read.names)))
            read.latents.append(latents)
            read.captions.append(sample["caption"])
    return read


def read_pixart(out: Path) -> Read:
    read = Read()
    root = out / "InternData"
    for item in json.loads((root / "data_info.json").read_text(encoding="utf-8")):
        assert item["ratio"] == item["height"] / item["width"]
        name = item["path"].rsplit("/", 1)[-1].replace(".png", ".npy")
        read.add_moments(load_npy(root / "img_sdxl_vae_features_32resolution_new" / name), logarithmic=False)
        read.names.append(name.removesuffix(".npy").replace("_", "/"))
        read.captions.append(item["prompt"])
        read.extra.setdefault("sizes", []).append((item["height"], item["width"]))
    return read


def read_kohya(out: Path, arch: str = "sdxl") -> Read:
    read = Read()
    for path in sorted(out.rglob(f"*_{arch}.npz")):
        stem, size, _ = path.relative_to(out).as_posix().rsplit("_", 2)
        width, height = (int(side) for side in size.split("x"))
        assert size == f"{width:04d}x{height:04d}"
        with np.load(path, allow_pickle=False) as data:
            [key] = [name for name in data.files if name.startswith("latents") and "flipped" not in name]
            suffix = key.removeprefix("latents")
            latents = data[key]
            assert suffix == (f"_{latents.shape[1]}x{latents.shape[2]}" if arch in ("flux", "sd3") else "")
            assert latents.dtype == np.float32
            read.names.append(stem)
            read.latents.append(latents)
            if f"latents_flipped{suffix}" in data:
                read.latents_flip.append(data[f"latents_flipped{suffix}"])
            assert data[f"original_size{suffix}"].tolist() == [width, height]
            read.extra.setdefault("crops", []).append(data[f"crop_ltrb{suffix}"].tolist())
            read.extra.setdefault("sizes", []).append((height, width))
    return read


def read_musubi(out: Path, arch: str = "zi") -> Read:
    read = Read()
    full = {"hv": "hunyuan_video", "qi": "qwen_image", "wan": "wan", "zi": "z_image"}[arch]
    for file in sorted(glob(os.path.join(out, f"*_{arch}.safetensors"))):
        tokens = os.path.basename(file).split("_")
        width, height = (int(side) for side in tokens[-2].split("x"))
        with safe_open(file, "pt") as cache:
            [key] = cache.keys()
            latents = cache.get_tensor(key)
            assert cache.metadata() == {
                "architecture": full, "width": str(width), "height": str(height), "format_version": "1.0.1",
            }  # fmt: skip
        if arch != "zi":
            assert latents.shape[1] == 1
            latents = latents[:, 0]
        assert key == f"latents_1x{latents.shape[1]}x{latents.shape[2]}_float32"
        read.names.append("_".join(tokens[:-2]))
        read.latents.append(latents.numpy())
        read.extra.setdefault("sizes", []).append((height, width))
    return read


def read_tokens(out: Path) -> Read:
    """Read files by the description at the top of the format's module: no trainer has a reader."""
    read = Read()
    about = json.loads((out / "ldm_ae.json").read_text())["tokens"]
    height, width, levels = (about[name] for name in ("height", "width", "levels"))
    for file in sorted([*out.glob("tokens_*.safetensors"), *out.glob("tokens_*.npy")]):
        if file.suffix == ".npy":
            names = ("tokens", "labels", "images", "flipped")
            shard = {name: load_npy(out / file.name.replace("tokens", name)) for name in names}
        else:
            with safe_open(file, framework="np") as opened:
                shard = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
                assert opened.metadata() == {name: str(value) for name, value in about.items()}
        assert shard.keys() == {"tokens", "labels", "images", "flipped"}
        assert shard["tokens"].dtype == (np.uint16 if about["codebook_size"] <= 65536 else np.uint32)
        assert [shard[name].dtype for name in ("labels", "images", "flipped")] == [np.int64, np.int64, np.uint8]
        for row, tokens in enumerate(shard["tokens"]):
            assert tokens.shape == (height * width * levels,)
            assert tokens.max() < about["codebook_size"]
            indices = np.empty((levels, height, width), np.int64)
            for i, token in enumerate(tokens):
                indices[i % levels, i // levels // width, i // levels % width] = token
            indices = indices if levels > 1 else indices[0]
            if shard["flipped"][row]:
                assert read.names[-1] == str(shard["images"][row])
                read.indices_flip.append(indices)
                continue
            read.indices.append(indices)
            read.names.append(str(shard["images"][row]))
            read.labels.append(int(shard["labels"][row]))
    return read


READERS: dict[str, Callable[[Path], Read]] = {
    "datasetfolder": read_datasetfolder,
    "edm2-zip": read_edm2_zip,
    "fast-dit": read_fast_dit,
    "kohya": read_kohya,
    "lightningdit": read_lightningdit,
    "mar": read_mar,
    "maskdit": read_maskdit,
    "mds": read_mds,
    "musubi": read_musubi,
    "pixart": read_pixart,
    "repa": read_repa,
    "repa-e": read_repa_e,
    "tokens": read_tokens,
}
