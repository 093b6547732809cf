"""What may differ from the store that is there: a path's spelling, the batch size, and images that were added."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ldm_ae.core.errors import UserError
from ldm_ae.latents import LatentDataset, LatentStore, verify_store
from ldm_ae.latents.store.format import read_description
from ldm_ae.latents.store.writer import StoreWriter
from ldm_ae.models import KLAutoencoder
from tests.latents.helpers import contents, encode
from tests.latents.test_processes import encode_together
from tests.latents.test_resume import encode_until, encoded  # noqa: F401 - a fixture
from tests.pictures import smooth_picture

NEW = ["birds/1.png", "cats/000.png", "dogs/new.png"]
"""Before, between and after the others by name."""


def add(images: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (images / name).parent.mkdir(exist_ok=True)
        smooth_picture(50 + number, 40, 44).save(images / name)


def keys(store: Path) -> list[str]:
    return LatentStore(store).index["key"].to_pylist()


def by_key(store: Path) -> dict[str, torch.Tensor]:
    data = LatentDataset(store)
    return {item["key"]: item["latents"] for item in (data[i] for i in range(len(data)))}


def shards(store: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(store).items() if name.endswith(".safetensors")}


@pytest.mark.slow
@pytest.mark.parametrize("change", ["spelling", "moved", "batch"])
def test_options_without_effect_on_results_may_differ(
    change: str,
    tiny_model: KLAutoencoder,
    image_folder: Path,
    store: Path,
    tmp_path: Path,
    encoded: list[str],  # noqa: F811
) -> None:
    again = tmp_path / "again"
    encode_until(11, tiny_model, image_folder, again)
    options: dict[str, Any] = {"source_name": "images/"}
    if change == "moved":
        options["source_name"] = str(tmp_path / "elsewhere")
        shutil.move(image_folder, tmp_path / "elsewhere")
        image_folder = tmp_path / "elsewhere"
    if change == "batch":
        options = {"batch_size": 1}
    encoded.clear()
    summary = encode(tiny_model, image_folder, again, **options)
    assert (len(encoded), summary.images) == (2, 12)
    assert verify_store(again) == []
    assert LatentStore(again).index.equals(LatentStore(store).index)
    assert LatentStore(again).request.source == "images"
    assert LatentStore(again).request.batch_size == (1 if change == "batch" else 3)
    if change != "batch":
        assert contents(again) == contents(store)
    before = contents(again)
    assert encode(tiny_model, image_folder, again, **options).already_complete
    assert contents(again) == before


def test_non_utf8_source_name_is_escaped(tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path) -> None:
    encode(tiny_model, image_folder, tmp_path / "store", source_name="caf\udce9")
    assert LatentStore(tmp_path / "store").index["source"][0].as_py() == "caf\\xe9"


@pytest.mark.slow
def test_only_new_images_are_encoded(
    tiny_model: KLAutoencoder,
    image_folder: Path,
    store: Path,
    tmp_path: Path,
    encoded: list[str],  # noqa: F811
) -> None:
    before, old_keys = shards(store), keys(store)
    add(image_folder, *NEW)  # one in a new class, which is the first by name
    encoded.clear()
    summary = encode(tiny_model, image_folder, store, batch_size=2)
    assert encoded == NEW
    assert (summary.images, summary.already_complete) == (15, False)
    assert keys(store) == [*old_keys, *NEW]
    added = "32x32/latents_rank01_shard000.safetensors"
    assert shards(store) == before | {added: (store / added).read_bytes()}
    assert load_file(store / added)["index"].tolist() == [12, 13, 14]
    assert load_file(store / added)["labels"].tolist() == [2, 0, 1]
    assert LatentStore(store).classes == ["cats", "dogs", "birds"]
    assert verify_store(store) == []
    encode(tiny_model, image_folder, tmp_path / "fresh")
    fresh, ours = by_key(tmp_path / "fresh"), by_key(store)
    assert ours.keys() == fresh.keys()
    for key in ours:  # another batch size reorders float32 sums
        torch.testing.assert_close(ours[key], fresh[key], atol=1e-5, rtol=1e-5)
    statistics = LatentStore(store).statistics
    torch.testing.assert_close(statistics.channel_mean, LatentStore(tmp_path / "fresh").statistics.channel_mean)
    after = contents(store)
    encoded.clear()
    assert encode(tiny_model, image_folder, store, batch_size=2).already_complete
    assert encoded == []
    assert contents(store) == after


def test_store_grows_repeatedly_and_detects_changes(
    tiny_model: KLAutoencoder,
    image_folder: Path,
    store: Path,
    encoded: list[str],  # noqa: F811
) -> None:
    add(image_folder, *NEW)
    encode(tiny_model, image_folder, store)
    add(image_folder, "cats/zz.png")
    smooth_picture(99, 40, 44).save(image_folder / NEW[0])  # of the first addition
    encoded.clear()
    encode(tiny_model, image_folder, store)
    assert encoded == [*NEW, "cats/zz.png"]
    description = read_description(store)
    assert (description["processes"], description["additions"]) == (1, [[12, 1], [15, 1]])
    assert [name for name in shards(store) if "rank00" not in name] == [
        "32x32/latents_rank01_shard000.safetensors", "32x32/latents_rank02_shard000.safetensors",
    ]  # fmt: skip
    assert verify_store(store) == []
    assert len(LatentStore(store)) == 16


def test_unfinished_store_accepts_additions(
    tiny_model: KLAutoencoder,
    image_folder: Path,
    tmp_path: Path,
    encoded: list[str],  # noqa: F811
) -> None:
    encode_until(8, tiny_model, image_folder, tmp_path / "store")
    add(image_folder, *NEW)
    encode_until(13, tiny_model, image_folder, tmp_path / "store")
    encoded.clear()
    encode(tiny_model, image_folder, tmp_path / "store")
    assert encoded == NEW
    assert keys(tmp_path / "store")[12:] == NEW
    assert verify_store(tmp_path / "store") == []


def test_kill_while_starting_an_addition_leaves_the_store_intact(
    tiny_model: KLAutoencoder, image_folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: Any) -> None:
        raise InterruptedError

    before = contents(store)
    add(image_folder, *NEW)
    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "mark_unfinished", killed)
        with pytest.raises(InterruptedError):
            encode(tiny_model, image_folder, store)
    assert verify_store(store) == []
    assert {name: data for name, data in contents(store).items() if not name.startswith(".work")} == before
    assert encode(tiny_model, image_folder, store).images == 15
    assert verify_store(store) == []


def test_several_processes_add_images(
    tiny_model: KLAutoencoder,
    image_folder: Path,
    tmp_path: Path,
    encoded: list[str],  # noqa: F811
) -> None:
    encode_together(2, tiny_model, image_folder, tmp_path / "store", shard_size=3)
    old = shards(tmp_path / "store")
    add(image_folder, *NEW, "x/1.png")
    encoded.clear()
    found = encode_together(3, tiny_model, image_folder, tmp_path / "store", shard_size=3)
    assert [summary.images for summary in found] == [16] * 3
    assert sorted(encoded) == sorted([*NEW, "x/1.png"])
    new = shards(tmp_path / "store").keys() - old.keys()
    assert sorted(new) == [
        "32x32/latents_rank03_shard000.safetensors", "32x32/latents_rank04_shard000.safetensors",
    ]  # fmt: skip
    assert {name: data for name, data in shards(tmp_path / "store").items() if name in old} == old
    assert keys(tmp_path / "store")[12:] == [*NEW, "x/1.png"]
    assert verify_store(tmp_path / "store") == []


def test_missing_images_are_refused_by_name(tiny_model: KLAutoencoder, image_folder: Path, store: Path) -> None:
    before = contents(store)
    add(image_folder, *NEW)
    (image_folder / "dogs/000.png").unlink()
    with pytest.raises(
        UserError,
        match=r"holds 12 images, of which 1 are not among these \(the first is dogs/000.png; .*; give another folder",
    ) as caught:
        encode(tiny_model, image_folder, store)
    assert "delete" not in str(caught.value)
    assert contents(store) == before
    with pytest.raises(UserError, match=r"made with seed 0 \(now 1\); .* give another folder for the store$"):
        add(image_folder, "dogs/000.png")
        encode(tiny_model, image_folder, store, seed=1)
    assert contents(store) == before


def test_unfinished_store_of_an_earlier_version_is_resumed(
    tiny_model: KLAutoencoder, image_folder: Path, store: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    encode_until(11, tiny_model, image_folder, again)
    (again / ".work/keys.parquet").unlink()
    shutil.copytree(again, tmp_path / "copy")
    encode(tiny_model, image_folder, again)
    assert contents(again) == contents(store)
    add(image_folder, *NEW)
    with pytest.raises(UserError, match=r"keys\.parquet does not list them"):
        encode(tiny_model, image_folder, tmp_path / "copy")
