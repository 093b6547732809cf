"""Reading a store: draws, flips, scaling, and the detection of damage."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from ldm_ae.core import shipped
from ldm_ae.core.errors import UserError
from ldm_ae.io.files import write_json
from ldm_ae.latents import LatentDataset, LatentStore, inspect_store, verify_store
from ldm_ae.latents.store.files import look_at, write_safetensors
from ldm_ae.models import KLAutoencoder, LatentSpec, hash_json, model_hash
from tests.latents.helpers import encode

SHARD = "32x32/latents_rank00_shard001.safetensors"


def test_dataset_items_equal_the_stored_rows(store: Path) -> None:
    data = LatentDataset(store)
    shard = load_file(store / SHARD)
    assert len(data) == 12
    for row in range(5):
        item = data[5 + row]
        assert torch.equal(item["latents"], shard["latents"][row])
        assert item["latents"].dtype == torch.float32
        assert item["label"] == int(shard["labels"][row])
        assert item["key"] == LatentStore(store).good()["key"][5 + row].as_py()


def test_draws_are_sampled_from_the_moments(store: Path) -> None:
    shard = load_file(store / SHARD)
    mean, log_variance = shard["moments"].chunk(2, dim=1)
    assert torch.equal(LatentDataset(store, draw="mode")[6]["latents"], mean[1])
    data = LatentDataset(store, draw="sample", seed=3)
    first = data[6]["latents"]
    noise = (first - mean[1]) / torch.exp(0.5 * log_variance[1])
    assert abs(float(noise.mean())) < 4 / 256**0.5  # 256 independent normals, four standard errors
    assert abs(float(noise.std()) - 1) < 4 / 512**0.5
    assert torch.equal(first, LatentDataset(store, draw="sample", seed=3)[6]["latents"])
    assert not torch.equal(first, LatentDataset(store, draw="sample", seed=4)[6]["latents"])
    data.set_epoch(1)
    assert not torch.equal(first, data[6]["latents"])


def test_half_of_the_items_are_mirrored(store: Path) -> None:
    shard = load_file(store / SHARD)
    data = LatentDataset(store, flip="half")
    flipped = 0
    for epoch in range(40):
        data.set_epoch(epoch)
        for row in range(5):
            latents = data[5 + row]["latents"]
            mirrored = torch.equal(latents, shard["latents_flip"][row])
            assert mirrored or torch.equal(latents, shard["latents"][row])
            flipped += mirrored
    assert abs(flipped - 100) < 4 * 200**0.5 / 2  # 200 fair coins, four standard deviations


def test_scaling_is_applied_on_reading(store: Path) -> None:
    raw = LatentDataset(store)[0]["latents"]
    spec = LatentSpec(channels=4, downsample_factor=4, scaling_factor=0.5, shift_factor=0.25)
    assert torch.equal(LatentDataset(store, spec=spec)[0]["latents"], (raw - 0.25) * 0.5)
    # The data set's own statistics whiten it; float32 holds 1e-7 of values of order 1.
    statistics = LatentStore(store).statistics
    mean, std = (tuple(value.tolist()) for value in (statistics.channel_mean, statistics.channel_std))
    spec = LatentSpec(channels=4, downsample_factor=4, scaling_factor=1.0, latents_mean=mean, latents_std=std)
    data = LatentDataset(store, spec=spec)
    whitened = torch.stack([data[i]["latents"] for i in range(12)]).double()
    torch.testing.assert_close(whitened.mean(dim=(0, 2, 3)), torch.zeros(4).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(whitened.std(dim=(0, 2, 3), correction=0), torch.ones(4).double(), atol=1e-6, rtol=0)


def test_items_do_not_depend_on_workers_or_pickling(store: Path) -> None:
    data = LatentDataset(store, draw="sample", flip="half")
    alone = torch.stack([data[i]["latents"] for i in range(12)])
    batches = list(DataLoader(data, batch_size=5, num_workers=1))
    assert torch.equal(torch.cat([batch["latents"] for batch in batches]), alone)
    assert batches[0]["label"].dtype == torch.int64
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy[7]["latents"], alone[7])


def test_open_shards_are_bounded(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm_ae.latents.store.reader._OPEN_FILES", 2)
    data = LatentDataset(store)
    first = [data[i]["latents"] for i in range(12)]
    assert len(data._open) == 2
    assert all(torch.equal(data[i]["latents"], first[i]) for i in (0, 5, 11, 0))


def test_unavailable_items_are_refused(tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path) -> None:
    encode(tiny_model, image_folder, tmp_path / "plain", flips=False)
    with pytest.raises(UserError, match="no mirror images"):
        LatentDataset(tmp_path / "plain", flip="half")
    with pytest.raises(UserError, match="draw is 'noise'"):
        LatentDataset(tmp_path / "plain", draw="noise")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"not a latent store: it has no store\.json"):
        LatentDataset(image_folder)
    with pytest.raises(UserError, match="is not a folder"):
        LatentDataset(tmp_path / "nowhere")


def test_model_check_detects_another_model(tiny_model: KLAutoencoder, store: Path) -> None:
    opened = LatentStore(store)
    tiny_model.set_scaling(scaling_factor=0.7)  # the same network
    opened.check_model(tiny_model)
    with torch.no_grad():
        tiny_model.last_layer.mul_(1.001)
    with pytest.raises(UserError, match="made by another model"):
        opened.check_model(tiny_model)


def test_model_check_names_the_shipped_version_and_where_to_get_it(
    tiny_model: KLAutoencoder, image_folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = replace(shipped.VERSIONS[0], version=7, model_hash=model_hash(tiny_model), weights_sha256="0" * 64)
    monkeypatch.setattr(shipped, "VERSIONS", (old, replace(old, version=8, model_hash="1" * 64)))
    with torch.no_grad():
        tiny_model.last_layer.mul_(1.001)
    where = rf"kl-f8c4-small@7 is not in this installation.*{old.commit[:12]}:checkpoints/kl-f8c4-small .* as MODEL"
    with pytest.raises(UserError, match=rf"made by kl-f8c4-small@7, this model has the hash \w{{12}}; {where}"):
        LatentStore(store).check_model(tiny_model)
    with pytest.raises(UserError, match=rf"a store made with .*\(its model: {where}\)"):
        encode(tiny_model, image_folder, store)


def test_valid_store_verifies_without_problems(store: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert verify_store(store, progress=lambda done, total: seen.append((done, total))) == []
    total = seen[0][1]
    assert total > len(list(store.glob("*/*.safetensors")))
    assert seen == [(done, total) for done in range(1, total + 1)]
    summary = inspect_store(store)
    assert summary["problems"] == []
    assert summary["complete"] is True
    assert summary["images"] == 12
    assert summary["buckets"] == {"32x32": {"images": 12, "shards": 3}}
    assert summary["bytes"] == sum(
        path.stat().st_size for path in store.rglob("*") if path.is_file() and path.name != "store.json"
    )
    assert json.loads(json.dumps(summary)) == summary


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def flip_bit(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "data": (lambda store: flip_bit(store / SHARD, -100), f"{SHARD} is damaged"),
    "header": (lambda store: flip_bit(store / SHARD, 20), f"{SHARD} is damaged"),
    "truncated": (lambda store: (store / SHARD).write_bytes((store / SHARD).read_bytes()[:-8]), f"{SHARD} is damaged"),
    "gone": (lambda store: (store / SHARD).unlink(), f"{SHARD} is missing"),
    "index": (lambda store: flip_bit(store / "index.parquet", 300), "damaged"),
    "statistics": (lambda store: rewrite(store / "stats.json", '"images": 12', '"images": 13'), "stats.json is dam"),
    "lightningdit": (lambda store: (store / "32x32/latents_stats.pt").write_bytes(b""), "latents_stats.pt is damaged"),
    "description": (lambda store: rewrite(store / "store.json", '"seed": 0', '"seed": 1'), "checksum does not match"),
    "not json": (lambda store: (store / "store.json").write_text('{"format":'), "cannot be read"),
    "nothing": (lambda store: (store / "store.json").write_text("[]\n"), "does not describe a latent store"),
    "version": (lambda store: rewrite(store / "store.json", '"format_version": 1', '"format_version": 2'), "version 2"),
    "field": (lambda store: rewrite(store / "store.json", '"flips": true', '"flips": "yes"'), "checksum does not"),
    "stranger": (
        lambda store: (store / "32x32/more.safetensors").write_bytes(b""),
        "32x32/more.safetensors does not belong",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_verify_detects_damage(name: str, store: Path) -> None:
    damage, message = DAMAGE[name]
    damage(store)
    problems = verify_store(store)
    assert any(message in problem for problem in problems), problems
    assert not any("\n" in problem for problem in problems)


def test_flipped_bytes_of_metadata_files_are_detected(store: Path) -> None:
    for name in ("store.json", "index.parquet", "stats.json"):
        file = store / name
        sound = file.read_bytes()
        for position in range(0, len(sound), max(len(sound) // 60, 1)):
            flip_bit(file, position)
            assert verify_store(store) != []
            file.write_bytes(sound)
    assert verify_store(store) == []


def poison(tensors: dict[str, torch.Tensor], header: dict[str, str]) -> None:
    tensors["moments_flip"][2, 0, 0, 0] = float("nan")


def drop(tensors: dict[str, torch.Tensor], header: dict[str, str]) -> None:
    del tensors["moments"]


def drop_all(tensors: dict[str, torch.Tensor], header: dict[str, str]) -> None:
    del tensors["moments"], tensors["moments_flip"]  # the other shards have them


def narrow(tensors: dict[str, torch.Tensor], header: dict[str, str]) -> None:
    tensors["latents"] = tensors["latents"].half()


def swap(tensors: dict[str, torch.Tensor], header: dict[str, str]) -> None:
    tensors["index"] = tensors["index"].flip(0)


def relabel(tensors: dict[str, torch.Tensor], header: dict[str, str]) -> None:
    tensors["labels"] = 1 - tensors["labels"]


def rehash(tensors: dict[str, torch.Tensor], header: dict[str, str]) -> None:
    header["model_hash"] = "0" * 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (poison, "has values in moments_flip that are not finite"),
        (drop, "has other tensors or shapes"),
        (drop_all, "has other tensors or shapes"),
        (narrow, "has other dtypes"),
        (swap, "does not hold the rows that index.parquet lists"),
        (relabel, "does not hold the rows that index.parquet lists"),
        (rehash, "has a header that does not match"),
    ],
)
def test_wrong_shard_is_detected(
    change: Callable[[dict[str, torch.Tensor], dict[str, str]], None], message: str, store: Path
) -> None:
    """The hashes are right here, so that only the content can tell."""
    tensors = load_file(store / SHARD)
    with safe_open(store / SHARD, "pt") as file:
        header = file.metadata()
    change(tensors, header)
    written = write_safetensors(store / SHARD, tensors, header)
    content = json.loads((store / "store.json").read_text())
    del content["checksum"]
    content["files"][SHARD] = written._asdict()
    write_json(store / "store.json", content | {"checksum": hash_json(content)})
    [problem] = verify_store(store)
    assert problem.startswith(f"{SHARD} {message}")


@pytest.mark.parametrize(("name", "value"), [("flips", "yes"), ("seed", True), ("scaling", {}), ("dtype", None)])
def test_request_with_wrong_types_is_refused(name: str, value: object, store: Path) -> None:
    content = json.loads((store / "store.json").read_text())
    del content["checksum"]
    content["request"][name] = value
    write_json(store / "store.json", content | {"checksum": hash_json(content)})
    with pytest.raises(UserError, match="is damaged"):
        LatentStore(store)


@pytest.mark.parametrize(("column", "value"), [("shard", "../../evil.safetensors"), ("bucket", ".."), ("row", -1)])
def test_index_paths_outside_the_store_are_refused(column: str, value: object, store: Path) -> None:
    table = pq.read_table(store / "index.parquet")
    rows = table.to_pylist()
    rows[3][column] = value
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), store / "index.parquet")
    content = json.loads((store / "store.json").read_text())
    del content["checksum"]
    content["files"]["index.parquet"] = look_at(store / "index.parquet")._asdict()
    write_json(store / "store.json", content | {"checksum": hash_json(content)})
    with pytest.raises(UserError, match="the index names"):
        LatentStore(store)


def test_shard_truncated_after_opening_is_named(store: Path) -> None:
    data = LatentDataset(store)
    (store / SHARD).write_bytes(b"x" * 100)
    assert data[0]["latents"].shape == (4, 8, 8)
    with pytest.raises(UserError, match=r"latents_rank00_shard001\.safetensors cannot be read"):
        data[5]


def cut(tensors: dict[str, torch.Tensor]) -> None:
    tensors["latents"] = tensors["latents"][..., :1]


def halve(tensors: dict[str, torch.Tensor]) -> None:
    tensors["latents"] = tensors["latents"].half()


def one_number(tensors: dict[str, torch.Tensor]) -> None:
    tensors["latents"] = torch.tensor(1.0)


def too_few(tensors: dict[str, torch.Tensor]) -> None:
    tensors["latents"] = tensors["latents"][:1]


@pytest.mark.parametrize("change", [cut, halve, one_number, too_few])
def test_inconsistent_row_is_refused(change: Callable[[dict[str, torch.Tensor]], None], store: Path) -> None:
    tensors = load_file(store / SHARD)
    change(tensors)
    write_safetensors(store / SHARD, tensors, {})
    data = LatentDataset(store)
    with pytest.raises(UserError, match=r"latents_rank00_shard001\.safetensors cannot be read \(latents, row 2\)"):
        data[7]


def resign(store: Path, **scaling: object) -> None:
    """Make the description match the files, as an attacker would."""
    content = json.loads((store / "store.json").read_text())
    del content["checksum"]
    content["files"] = {name: look_at(store / name)._asdict() for name in content["files"]}
    content["request"]["scaling"] |= scaling
    write_json(store / "store.json", content | {"checksum": hash_json(content)})


def replace_crop(store: Path, crop: pa.Array) -> None:
    table = pq.read_table(store / "index.parquet")
    place = table.schema.get_field_index("crop")
    pq.write_table(table.set_column(place, pa.field("crop", crop.type), crop), store / "index.parquet")
    resign(store)


def test_crops_of_an_older_store_are_read(store: Path) -> None:
    before = LatentStore(store).good()
    replace_crop(store, pa.array(before["crop"].to_pylist(), pa.list_(pa.int32(), 4)))
    assert LatentStore(store).good().equals(before)


def test_crop_must_have_four_numbers(store: Path) -> None:
    crops = LatentStore(store).good()["crop"].to_pylist()
    replace_crop(store, pa.array([*crops[:5], crops[5][:3], *crops[6:]], pa.list_(pa.int32())))
    with pytest.raises(UserError, match="a crop of the index does not have four numbers"):
        LatentStore(store)


def test_non_utf8_keys_are_refused(store: Path) -> None:
    table = pq.read_table(store / "index.parquet")
    keys = pa.array([b"\xff" + str(i).encode() for i in range(len(table))]).view(pa.string())
    pq.write_table(table.set_column(0, table.schema.field(0), keys), store / "index.parquet")
    resign(store)
    with pytest.raises(UserError, match=r"damaged .*UTF8"):
        LatentStore(store)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"downsample_factor": 0}, "whole numbers above 0"),
        ({"scaling_factor": "exec"}, "finite numbers"),
        ({"channels": 8}, "a different number of channels"),
        ({"more": 1}, "unexpected keyword"),
    ],
)
def test_invalid_scaling_is_refused(scaling: dict[str, object], message: str, store: Path) -> None:
    resign(store)
    assert verify_store(store) == []
    resign(store, **scaling)
    with pytest.raises(UserError, match=message):
        LatentStore(store)


@pytest.mark.parametrize(
    "change", [{"count": -1}, {"count": 2.0}, {"mean": "text"}, {"mean": [None] * 4}, {"squares": [1.0]}]
)
def test_invalid_statistics_are_refused(change: dict[str, object], store: Path) -> None:
    content = json.loads((store / "stats.json").read_text())
    content["state"] |= change
    write_json(store / "stats.json", content)
    resign(store)
    with pytest.raises(UserError, match=r"is damaged .*(mean and squares|count) must be"):
        LatentStore(store)
