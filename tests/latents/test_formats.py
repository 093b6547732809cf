"""Each trainer's format: its own reader returns the latents of the store."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from ldm_ae.core.errors import UserError
from ldm_ae.core.registry import names_of
from ldm_ae.data import ImageTransform, decode_image, open_source
from ldm_ae.latents import LatentStore
from ldm_ae.latents.conversion.convert import ConvertSummary, convert_store
from ldm_ae.latents.fold import Fold
from ldm_ae.latents.formats import FORMATS
from ldm_ae.latents.store.files import look_at
from ldm_ae.models import KLAutoencoder
from tests.latents.format_contract import (
    DEFAULT_TOLERANCE,
    HELD,
    OPTIONS,
    PLAIN,
    SCALED,
    TOLERANCE,
    WITH_IMAGES,
    content_of,
    expect,
    positions_of,
)
from tests.latents.format_readers import READERS, read_kohya, read_musubi
from tests.latents.helpers import drop_tensors, encode, synthetic_store

LIBRARIES = {"maskdit": "lmdb", "repa-e": "h5py"}


def available(name: str) -> str:
    if (library := LIBRARIES.get(name)) and importlib.util.find_spec(library) is None:
        pytest.skip(f"the package {library} is missing")
    return name


@pytest.fixture(params=sorted(FORMATS))
def name(request: pytest.FixtureRequest) -> str:
    return available(request.param)


@pytest.fixture(params=PLAIN)
def plain(request: pytest.FixtureRequest) -> str:
    return available(request.param)


def convert(content_path: Path, name: str, out: Path, **options: Any) -> tuple[Path, ConvertSummary]:
    target = out.with_suffix(".zip") if name == "edm2-zip" else out
    return target, convert_store(content_path, target, name, **(OPTIONS.get(name, {}) | options))


def test_every_format_has_a_reader_and_is_on_the_command_line() -> None:
    assert sorted(READERS) == sorted(FORMATS), "write the trainer's reader for a new format in format_readers.py"
    assert list(names_of("ldm_ae.latents.formats", "FORMATS")) == sorted(FORMATS)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_trainer_readers_return_the_stored_latents(
    name: str, dtype: str, tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {}
    if name in WITH_IMAGES:
        encode(tiny_model, image_folder, tmp_path / "store", dtype=dtype)
        content = content_of(tmp_path / "store")
        options["images"] = open_source(image_folder)
    else:
        buckets = {"32x32": 12}  # two digits, in order
        content = synthetic_store(tmp_path / "store", dtype=dtype, buckets=buckets, **HELD.get(name, {}))
    out, summary = convert(tmp_path / "store", name, tmp_path / "out", **options)
    assert summary.images == len(content.keys)
    read = READERS[name](out)
    assert len(read.names) == len(content.keys)
    positions = positions_of(read.names, content)
    assert sorted(positions) == list(range(len(content.keys)))
    needed = FORMATS[name].needs_labels
    assert not needed or read.labels
    assert read.latents or read.mean or read.indices
    expect(read, content, positions, scaled=name in SCALED, **TOLERANCE.get(name, DEFAULT_TOLERANCE))
    if "sizes" in read.extra:
        assert read.extra["sizes"] == [content.sizes[position] for position in positions]
    statistics = LatentStore(tmp_path / "store").statistics
    for kind, expected in (("mean", statistics.channel_mean), ("std", statistics.channel_std)):
        if f"statistics_{kind}" in read.extra:
            torch.testing.assert_close(read.extra[f"statistics_{kind}"].flatten(), expected.float())


@pytest.mark.parametrize("format", WITH_IMAGES)
def test_images_beside_latents_equal_the_encoded_ones(
    format: str, tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path
) -> None:
    if library := LIBRARIES.get(format):
        pytest.importorskip(library)
    encode(tiny_model, image_folder, tmp_path / "store")
    source = open_source(image_folder)
    (image_folder / "cats" / "000_more.png").write_bytes((image_folder / "cats" / "001.png").read_bytes())
    out, _ = convert(tmp_path / "store", format, tmp_path / "out", images=open_source(image_folder))  # one more image
    transform = ImageTransform(size=32)
    for i, image in enumerate(READERS[format](out).images):
        expected = transform(decode_image(source[i].data)).pixel_values
        assert (image == ((expected + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).all()
    with pytest.raises(UserError, match="give them with --images"):
        convert(tmp_path / "store", format, tmp_path / "none")
    (image_folder / "cats" / "001.png").write_bytes((image_folder / "cats" / "003.png").read_bytes())
    with pytest.raises(UserError, match=r"cats/001\.png in the images is not the encoded one"):
        convert(tmp_path / "store", format, tmp_path / "stale", images=open_source(image_folder))
    (image_folder / "cats" / "001.png").unlink()
    with pytest.raises(UserError, match=r"the images lack cats/001\.png"):
        convert(tmp_path / "store", format, tmp_path / "stale", images=open_source(image_folder))
    assert not (tmp_path / "stale").exists()
    assert not list(tmp_path.glob(".*"))


def test_formats_support_several_resolutions(plain: str, tmp_path: Path) -> None:
    content = synthetic_store(tmp_path / "store", buckets={"64x32": 4, "32x32": 5}, **HELD.get(plain, {}))
    if not FORMATS[plain].several_sizes:
        with pytest.raises(UserError, match="has 32x32, 64x32; choose one with --bucket"):
            convert(content.path, plain, tmp_path / "both")
        assert not (tmp_path / "both").exists()
    else:
        out, _ = convert(content.path, plain, tmp_path / "both")
        read = READERS[plain](out)
        positions = positions_of(read.names, content)
        assert sorted(positions) == list(range(9))
        expect(read, content, positions, scaled=False, **DEFAULT_TOLERANCE)
    out, summary = convert(content.path, plain, tmp_path / "one", bucket="32x32")
    assert summary.images == 5
    read = READERS[plain](out)
    keyed = plain in ("kohya", "musubi", "pixart")
    positions = positions_of(read.names, content) if keyed else [4 + int(found) for found in read.names]
    assert sorted(positions) == list(range(4, 9))
    expect(read, content, positions, scaled=plain in SCALED, **TOLERANCE.get(plain, DEFAULT_TOLERANCE))
    with pytest.raises(UserError, match="has no images of 16x16"):
        convert(content.path, plain, tmp_path / "none", bucket="16x16")


def test_conversion_record_describes_the_files(plain: str, tmp_path: Path) -> None:
    content = synthetic_store(tmp_path / "store", **HELD.get(plain, {}))
    out, summary = convert(content.path, plain, tmp_path / "out")
    if out.is_file():
        with zipfile.ZipFile(out) as archive:
            archive.extractall(tmp_path / "unpacked")
        out = tmp_path / "unpacked"
    account = json.loads((out / "ldm_ae.json").read_text())
    assert (account["format"], account["images"], account["pixels"]) == (plain, 7, "RGB in [-1, 1]")
    assert account["warnings"] == summary.warnings
    assert account["request"]["model_hash"] == "0" * 64
    if plain == "tokens":
        assert account["values"] is None
    else:
        assert set(Fold.from_json(account["values"]).scale) == ({2.0} if plain in SCALED else {1.0})
    rows = pq.read_table(out / "ldm_ae.parquet").to_pylist()
    assert [row["key"] for row in rows] == content.keys
    assert [row["caption"] for row in rows] == content.captions


def test_conversion_is_byte_reproducible(plain: str, tmp_path: Path) -> None:
    content = synthetic_store(tmp_path / "store", **HELD.get(plain, {}))
    first, _ = convert(content.path, plain, tmp_path / "first")
    second, _ = convert(content.path, plain, tmp_path / "second")
    files = [first] if first.is_file() else [path for path in first.rglob("*") if path.is_file()]
    for file in files:
        twin = second if first.is_file() else second / file.relative_to(first)
        assert look_at(file) == look_at(twin)


def test_lightningdit_format_links_the_shards(tmp_path: Path) -> None:
    content = synthetic_store(tmp_path / "store")
    before = {path.name: look_at(path) for path in (content.path / "32x32").iterdir()}
    out, _ = convert(content.path, "lightningdit", tmp_path / "out")
    shards = sorted(path.name for path in out.glob("*.safetensors"))
    assert shards == [f"latents_rank00_shard{i:03d}.safetensors" for i in range(3)]
    assert all((out / shard).samefile(content.path / "32x32" / shard) for shard in shards)
    assert {path.name: look_at(path) for path in (content.path / "32x32").iterdir()} == before


def test_lightningdit_format_draws_latents_from_a_lean_store(tmp_path: Path) -> None:
    content = synthetic_store(tmp_path / "store")
    drop_tensors(content.path, "latents")
    out, _ = convert(content.path, "lightningdit", tmp_path / "out")
    read = READERS["lightningdit"](out)
    assert read.labels == content.labels
    for i, latents in enumerate(read.latents):
        mean, log_variance = content.tensors[i]["moments"].chunk(2)
        noise = (torch.tensor(latents) - mean) / torch.exp(0.5 * log_variance)
        assert abs(float(noise.mean())) < 5 / 16  # 256 independent normals, five standard errors
        assert abs(float(noise.std()) - 1) < 5 / (2 * 256) ** 0.5


@pytest.mark.slow
def test_edm2_files_are_grouped_in_folders_of_a_thousand(tmp_path: Path) -> None:
    content = synthetic_store(tmp_path / "store", buckets={"4x4": 1003}, flips=False, shard=500)
    out, _ = convert(content.path, "edm2-zip", tmp_path / "out")
    read = READERS["edm2-zip"](out)
    assert len(read.names) == 1003
    expect(read, content, list(range(1003)), scaled=False, **DEFAULT_TOLERANCE)


def test_mds_format_writes_several_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm_ae.latents.formats.mds._SIZE_LIMIT", 1500)  # two samples of 512 bytes and a caption
    content = synthetic_store(tmp_path / "store")
    out, _ = convert(content.path, "mds", tmp_path / "out")
    assert sorted(path.name for path in out.glob("*.mds")) == [f"shard.{i:05d}.mds" for i in range(4)]
    expect(READERS["mds"](out), content, list(range(7)), scaled=True, **TOLERANCE["mds"])


@pytest.mark.parametrize("arch", ["sd", "sdxl", "sd3", "flux"])
def test_kohya_format_supports_every_architecture(arch: str, tmp_path: Path) -> None:
    content = synthetic_store(tmp_path / "store", channels=16 if arch in ("sd3", "flux") else 4, flips=arch != "sd")
    out, summary = convert(content.path, "kohya", tmp_path / "out", arch=arch)
    assert not any("channels" in warning for warning in summary.warnings)
    read = read_kohya(out, arch)
    positions = positions_of(read.names, content)
    expect(read, content, positions, scaled=False, **DEFAULT_TOLERANCE)
    assert bool(read.latents_flip) == (arch != "sd")
    # Image 0 is 50 wide and 40 high, encoded at 32x32: scaled to 32 wide it is 25.6 high, and (32 - 25.6) // 2 is 3.
    np.testing.assert_allclose(read.extra["crops"][positions.index(0)], [0, 3, 32, 28.6])


@pytest.mark.parametrize("arch", ["hv", "qi", "wan", "zi"])
def test_musubi_format_supports_every_architecture(arch: str, tmp_path: Path) -> None:
    content = synthetic_store(tmp_path / "store", channels=16)
    out, _ = convert(content.path, "musubi", tmp_path / "out", arch=arch)
    read = read_musubi(out, arch)
    positions = positions_of(read.names, content)
    expect(read, content, positions, scaled=arch in ("qi", "wan"), **DEFAULT_TOLERANCE)
