"""Import of trainers' files into stores: own conversions roundtrip, and missing facts of others are asked for."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm_ae.cli import main
from ldm_ae.core.errors import UserError
from ldm_ae.data import open_source
from ldm_ae.latents import LatentDataset, LatentStore, decode_store, verify_store
from ldm_ae.latents.conversion.convert import convert_store
from ldm_ae.latents.conversion.import_store import import_latents
from ldm_ae.models import KLAutoencoder, model_hash
from tests.latents.helpers import encode, synthetic_store

ROW = ("key", "label", "caption", "source", "source_hash", "width", "height", "crop", "bucket")
TENSORS = ("latents", "moments", "labels", "original_size", "crop_ltrb")


def compare(one: Path, other: Path, names: tuple[str, ...], **tolerance: float) -> None:
    """Two stores hold the same images."""
    first, second = LatentStore(one), LatentStore(other)
    for name in ROW:
        assert first.good()[name].to_pylist() == second.good()[name].to_pylist()
    assert first.request.model_hash == second.request.model_hash
    assert first.request.scaling == second.request.scaling
    left, right = LatentDataset(first), LatentDataset(second)
    for i in range(len(first)):
        a, b = left.tensors(i, names), right.tensors(i, names)
        for name in names:
            assert a[name].dtype == b[name].dtype
            torch.testing.assert_close(b[name], a[name], **tolerance)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_lightningdit_conversion_roundtrips(dtype: str, tmp_path: Path) -> None:
    content = synthetic_store(tmp_path / "store", dtype=dtype)
    convert_store(content.path, tmp_path / "out", "lightningdit")
    summary = import_latents(tmp_path / "out", tmp_path / "back")
    assert (summary.format, summary.images, summary.warnings) == ("lightningdit", 7, [])
    compare(content.path, tmp_path / "back", (*TENSORS, "latents_flip", "moments_flip"), atol=0, rtol=0)
    assert verify_store(tmp_path / "back") == []
    # The shards are others, so that the sums over them are rounded elsewhere.
    left, right = (LatentStore(path).statistics for path in (content.path, tmp_path / "back"))
    torch.testing.assert_close(left.channel_std, right.channel_std)
    assert not import_latents(tmp_path / "out", tmp_path / "back").warnings  # the same command again does nothing


@pytest.mark.parametrize("fold", [None, "trainer", 0.3])
@pytest.mark.parametrize("unpacked", [False, True])
def test_edm2_conversion_roundtrips(fold: Any, unpacked: bool, tmp_path: Path) -> None:
    content = synthetic_store(tmp_path / "store", flips=False, seed=5)
    convert_store(content.path, tmp_path / "out.zip", "edm2-zip", fold=fold)
    source = tmp_path / "out.zip"
    if unpacked:
        with zipfile.ZipFile(source) as archive:
            archive.extractall(tmp_path / "out")
        source = tmp_path / "out"
    summary = import_latents(source, tmp_path / "back")
    assert (summary.format, summary.images, summary.warnings) == ("edm2-zip", 7, [])
    # Log-variances go through exp and log in float32, means through the fold; the draws are the encoder's, with the
    # seed and the keys of the source summary.
    compare(content.path, tmp_path / "back", TENSORS, atol=1e-5, rtol=1e-5)
    assert verify_store(tmp_path / "back") == []


def test_encoded_store_roundtrips_through_edm2(tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path) -> None:
    encode(tiny_model, image_folder, tmp_path / "store", flips=False)
    convert_store(tmp_path / "store", tmp_path / "out.zip", "edm2-zip", fold="trainer")
    import_latents(tmp_path / "out.zip", tmp_path / "back", model=tiny_model)
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert json.loads(archive.read("classes.json")) == ["cats", "dogs"]
    assert LatentStore(tmp_path / "back").classes == ["cats", "dogs"]
    compare(tmp_path / "store", tmp_path / "back", TENSORS, atol=1e-5, rtol=1e-5)
    # It is as good as the first: it decodes, and it can be put beside its images.
    assert decode_store(tiny_model, tmp_path / "back", tmp_path / "pictures", device="cpu") == 12
    convert_store(tmp_path / "back", tmp_path / "repa", "repa", images=open_source(image_folder))


def lightningdit_of_others(folder: Path, *, flips: bool = True) -> list[dict[str, torch.Tensor]]:
    folder.mkdir()
    shards = []
    for number in range(2):
        shard = {"latents": torch.randn(3, 4, 8, 8), "labels": torch.arange(3) + number}
        if flips:
            shard["latents_flip"] = torch.randn(3, 4, 8, 8)
        save_file(shard, folder / f"latents_rank{number:02d}_shard000.safetensors")
        shards.append(shard)
    return shards


@pytest.mark.parametrize("flips", [False, True])
def test_foreign_lightningdit_files_are_imported(flips: bool, tiny_model: KLAutoencoder, tmp_path: Path) -> None:
    shards = lightningdit_of_others(tmp_path / "theirs", flips=flips)
    with pytest.raises(UserError, match="does not record which model made it; give it with --model"):
        import_latents(tmp_path / "theirs", tmp_path / "store")
    summary = import_latents(tmp_path / "theirs", tmp_path / "store", model=tiny_model)
    assert summary.warnings == ["the files do not name the images: their numbers become the keys"]
    store, data = LatentStore(tmp_path / "store"), LatentDataset(tmp_path / "store")
    assert store.request.model_hash == model_hash(tiny_model)
    assert store.good()["key"].to_pylist() == [f"{i:08d}" for i in range(6)]
    assert store.good()["bucket"].to_pylist() == ["32x32"] * 6
    assert data.labels.tolist() == [0, 1, 2, 1, 2, 3]
    for i in range(6):
        assert torch.equal(data[i]["latents"], shards[i // 3]["latents"][i % 3])
    assert ("latents_flip" in data.tensor_names) == flips
    assert verify_store(tmp_path / "store") == []
    assert decode_store(tiny_model, tmp_path / "store", tmp_path / "out", device="cpu") == 6
    with pytest.raises(UserError, match="has no moments to draw from"):
        decode_store(tiny_model, tmp_path / "store", tmp_path / "mode", latents="mode", device="cpu")


def edm2_of_others(path: Path, *, labels: Any, std: float = 0.5) -> np.ndarray:
    values = np.random.default_rng(0).standard_normal((5, 8, 8, 8)).astype(np.float32)
    values[:, 4:] = std * np.abs(values[:, 4:]) + 0.01
    with zipfile.ZipFile(path, "w") as archive:
        for i, value in enumerate(values):
            buffer = io.BytesIO()
            np.save(buffer, value)
            archive.writestr(f"00000/img-mean-std-{i:08d}.npy", buffer.getvalue())
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
    return values


def test_foreign_edm2_files_are_imported(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = [[f"00000/img-mean-std-{i:08d}.npy", 10 - i] for i in range(5)]
    values = edm2_of_others(tmp_path / "theirs.zip", labels=labels)
    command = ["convert", str(tmp_path / "theirs.zip"), str(tmp_path / "store"), "--format", "store"]
    assert main(command) == 2
    assert main([*command, "--model", str(tiny_model_folder)]) == 0
    captured = capsys.readouterr()
    assert "EDM2's own encoder takes pixels in [0, 1]" in captured.err
    data = LatentDataset(tmp_path / "store")
    assert data.labels.tolist() == [10, 9, 8, 7, 6]
    for i in range(5):
        moments = data.tensors(i, ["moments"])["moments"]
        np.testing.assert_allclose(moments[:4], values[i, :4], rtol=0)
        np.testing.assert_allclose((0.5 * moments[4:]).exp(), values[i, 4:], rtol=1e-6)  # log and exp in float32
        noise = (data[i]["latents"].numpy() - values[i, :4]) / values[i, 4:]
        assert abs(noise.mean()) < 5 / 16  # 256 independent normals, five standard errors
    assert verify_store(tmp_path / "store") == []


def test_edm2_labels_are_validated(tiny_model: KLAutoencoder, tmp_path: Path) -> None:
    edm2_of_others(tmp_path / "none.zip", labels=None)
    import_latents(tmp_path / "none.zip", tmp_path / "store", model=tiny_model)
    assert LatentDataset(tmp_path / "store").labels.tolist() == [-1] * 5
    names = [f"00000/img-mean-std-{i:08d}.npy" for i in range(5)]
    for number, (labels, message) in enumerate((
        ([[name, [0.5, 0.5]] for name in names], "does not give each name a class"),
        ([[name, -1] for name in names], "does not give each name a class"),
        ([[name, 1] for name in names[1:]], "has no label for 00000/img-mean-std-00000000.npy"),
        ("no list", "does not give each name a class"),
    )):  # fmt: skip
        edm2_of_others(tmp_path / f"{number}.zip", labels=labels)
        with pytest.raises(UserError, match=message):
            import_latents(tmp_path / f"{number}.zip", tmp_path / f"store{number}", model=tiny_model)


def test_zero_standard_deviation_is_stored_as_the_smallest_value(tiny_model: KLAutoencoder, tmp_path: Path) -> None:
    values = edm2_of_others(tmp_path / "theirs.zip", labels=None)
    values[:, 4:] = 0
    with zipfile.ZipFile(tmp_path / "zero.zip", "w") as archive:
        buffer = io.BytesIO()
        np.save(buffer, values[0])
        archive.writestr("00000/img-mean-std-00000000.npy", buffer.getvalue())
    import_latents(tmp_path / "zero.zip", tmp_path / "store", model=tiny_model)
    moments = LatentDataset(tmp_path / "store").tensors(0, ["moments"])["moments"]
    assert (moments[4:] == -30).all()


def break_account(folder: Path) -> None:
    (folder / "ldm_ae.json").write_text("{")


def other_version(folder: Path) -> None:
    content = json.loads((folder / "ldm_ae.json").read_text())
    (folder / "ldm_ae.json").write_text(json.dumps(content | {"version": 99}))


def no_fold(folder: Path) -> None:
    content = json.loads((folder / "ldm_ae.json").read_text())
    (folder / "ldm_ae.json").write_text(json.dumps(content | {"values": {"scale": [0.0], "bias": [0.0]}}))


def no_scaling(folder: Path) -> None:
    content = json.loads((folder / "ldm_ae.json").read_text())
    content["request"]["scaling"] = {"depth": 4}
    (folder / "ldm_ae.json").write_text(json.dumps(content))


def bad_rows(folder: Path) -> None:
    table = pq.read_table(folder / "ldm_ae.parquet")
    rows = [row | {"status": "bad"} for row in table.to_pylist()]
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), folder / "ldm_ae.parquet")


def lose_a_shard(folder: Path) -> None:
    (folder / "latents_rank00_shard001.safetensors").unlink()


def cut_a_shard(folder: Path) -> None:
    shard = folder / "latents_rank00_shard001.safetensors"
    content = shard.read_bytes()[:200]
    shard.unlink()  # it is a link to the store's
    shard.write_bytes(content)


def another_size(folder: Path) -> None:
    tensors = load_file(folder / "latents_rank00_shard001.safetensors")
    (folder / "latents_rank00_shard001.safetensors").unlink()
    save_file(
        {name: tensor[..., :4].contiguous() if tensor.ndim == 4 else tensor for name, tensor in tensors.items()},
        folder / "latents_rank00_shard001.safetensors",
    )


def not_finite(folder: Path) -> None:
    tensors = load_file(folder / "latents_rank00_shard001.safetensors")
    tensors["latents"][1, 0, 0, 0] = float("inf")
    (folder / "latents_rank00_shard001.safetensors").unlink()
    save_file(tensors, folder / "latents_rank00_shard001.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_account, r"ldm_ae\.json or ldm_ae\.parquet is damaged"),
        (other_version, "is a conversion of version 99; this program reads 1"),
        (no_fold, "the metadata that ldm_ae wrote is damaged"),
        (no_scaling, "the metadata that ldm_ae wrote is damaged"),
        (bad_rows, "the index has rows of bad images"),
        (lose_a_shard, "holds 4 images, but its metadata names 7"),
        (cut_a_shard, "cannot be read"),
        (another_size, "holds other tensors, shapes or dtypes"),
        (not_finite, "latents of images 3 to 5 is not finite"),
    ],
)
def test_damaged_files_are_refused_by_name(damage: Any, message: str, tmp_path: Path) -> None:
    content = synthetic_store(tmp_path / "store")
    convert_store(content.path, tmp_path / "out", "lightningdit")
    damage(tmp_path / "out")
    with pytest.raises(UserError, match=message) as error:
        import_latents(tmp_path / "out", tmp_path / "back")
    assert "\n" not in str(error.value)


def test_unsupported_inputs_are_refused(tiny_model: KLAutoencoder, tmp_path: Path) -> None:
    content = synthetic_store(tmp_path / "store")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.zip").write_text("no archive")
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        archive.writestr("a.png", b"")
    (tmp_path / "model").mkdir()
    save_file({"weight": torch.zeros(1)}, tmp_path / "model" / "model.safetensors")
    (tmp_path / "none").mkdir()
    nothing = {"latents": torch.zeros(0, 4, 8, 8), "labels": torch.zeros(0, dtype=torch.int64)}
    save_file(nothing, tmp_path / "none" / "latents_rank00_shard000.safetensors")
    for name, message in {
        "none": "hold no latents",
        "nothing": "no such file or folder",
        "store": "is a latent store already",
        "empty": "is neither a folder of LightningDiT's safetensors nor EDM2's",
        "text.zip": "is not a valid ZIP file",
        "pictures.zip": "it has no .npy files",
        "model": "is not a shard of LightningDiT's: it lacks latents or labels",
    }.items():
        with pytest.raises(UserError, match=message):
            import_latents(tmp_path / name, tmp_path / "back", model=tiny_model)
    convert_store(content.path, tmp_path / "out", "lightningdit")
    with pytest.raises(UserError, match="names another model; remove --model"):
        import_latents(tmp_path / "out", tmp_path / "back", model=tiny_model)
    lightningdit_of_others(tmp_path / "theirs")
    other = KLAutoencoder(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=2)
    with pytest.raises(UserError, match="have 4 channels, the model has 2"):
        import_latents(tmp_path / "theirs", tmp_path / "back", model=other)
    with pytest.raises(UserError, match="is not empty"):
        import_latents(tmp_path / "theirs", tmp_path / "model", model=tiny_model)
