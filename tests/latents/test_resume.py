"""Resumed encoding keeps finished shards, and encodes missing and damaged ones again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ldm_ae.io.files import write_json
from ldm_ae.latents import LatentStore, verify_store
from ldm_ae.latents.encoding import encoder
from ldm_ae.latents.store.records import read_record, recorded
from ldm_ae.models import KLAutoencoder, hash_json
from tests.latents.helpers import contents, encode, overflow_encoder

pytestmark = pytest.mark.slow

SHARDS = [f"latents_rank00_shard{number:03d}.safetensors" for number in range(3)]


class StoppedError(Exception):
    """Raised after some images, in place of a kill."""


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the images that go through the model, in order."""
    keys: list[str] = []
    original = encoder._encode_batch

    def counted(model: Any, batch: Any, *rest: Any) -> Any:
        keys.extend(batch.keys)
        return original(model, batch, *rest)

    monkeypatch.setattr(encoder, "_encode_batch", counted)
    return keys


def encode_until(images: int, model: KLAutoencoder, source: Path, store: Path, **changes: Any) -> None:
    def stop(done: int, total: int) -> None:
        if done >= images:
            raise StoppedError

    with pytest.raises(StoppedError):
        encode(model, source, store, progress=stop, **changes)


def test_resume_keeps_finished_shards_and_encodes_the_remainder(
    tiny_model: KLAutoencoder, image_folder: Path, store: Path, tmp_path: Path, encoded: list[str]
) -> None:
    again = tmp_path / "again"
    encode_until(11, tiny_model, image_folder, again)  # in the third shard, of two images
    assert recorded(again) == SHARDS[:2]
    inode = (again / "32x32" / SHARDS[0]).stat().st_ino
    encoded.clear()
    seen: list[tuple[int, int]] = []
    summary = encode(tiny_model, image_folder, again, progress=lambda *done: seen.append(done))
    assert len(encoded) == 2
    assert seen == [(5, 12), (10, 12), (12, 12), (12, 12)]
    assert (summary.images, summary.already_complete) == (12, False)
    assert (again / "32x32" / SHARDS[0]).stat().st_ino == inode
    assert contents(again) == contents(store)
    assert verify_store(again) == []


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "record", "forged record", "no record", "another's"])
def test_resume_recognizes_shards_by_hash(
    damage: str, tiny_model: KLAutoencoder, image_folder: Path, store: Path, tmp_path: Path, encoded: list[str]
) -> None:
    again = tmp_path / "again"
    encode_until(11, tiny_model, image_folder, again)
    shard = again / "32x32" / SHARDS[0]
    record = again / ".work" / f"{shard.stem}.json"
    data = bytearray(shard.read_bytes())
    if damage == "flip":
        data[-100] ^= 1
        shard.write_bytes(data)
    elif damage == "cut":
        shard.write_bytes(data[:-1])
    elif damage == "remove":
        shard.unlink()
    elif damage == "record":
        record.write_bytes(record.read_bytes()[:-20])
    elif damage == "forged record":
        content = json.loads(record.read_text())
        content["rows"][0]["label"] = 7
        write_json(record, content)
    elif damage == "no record":
        record.unlink()
    else:
        shard.write_bytes((again / "32x32" / SHARDS[1]).read_bytes())
    encoded.clear()
    encode(tiny_model, image_folder, again)
    assert len(encoded) == 5 + 2
    assert contents(again) == contents(store)


def test_resume_removes_files_of_a_killed_process(
    tiny_model: KLAutoencoder, image_folder: Path, store: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    encode_until(8, tiny_model, image_folder, again)
    (again / "32x32/.latents_rank00_shard001.safetensors.99.tmp").write_bytes(b"half")
    (again / ".work/.latents_rank00_shard001.json.99.tmp").write_bytes(b"half")
    (again / ".index.parquet.99.tmp").write_bytes(b"half")
    (again / "32x32/latents_rank00_shard001.safetensors").write_bytes(b"a shard without a record")
    (again / "32x32/latents_rank07_shard000.safetensors").write_bytes(b"of nobody")
    encode(tiny_model, image_folder, again)
    assert contents(again) == contents(store)
    # Killed after the store was complete and before its records were gone.
    (again / ".work").mkdir()
    (again / ".work/latents_rank00_shard000.json").write_text("{}")
    assert verify_store(again) == []
    assert encode(tiny_model, image_folder, again).already_complete
    assert contents(again) == contents(store)


def test_kill_before_the_description_does_not_block_a_rerun(
    tiny_model: KLAutoencoder, image_folder: Path, store: Path, tmp_path: Path
) -> None:
    (tmp_path / "again/.work").mkdir(parents=True)
    encode(tiny_model, image_folder, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(store)


def test_ranges_without_a_good_image_are_recorded(
    tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path, encoded: list[str]
) -> None:
    for file in sorted(image_folder.glob("*/*.png"))[5:10]:
        file.write_bytes(b"no picture")
    encode(tiny_model, image_folder, tmp_path / "whole", max_bad_fraction=1.0)
    encode_until(11, tiny_model, image_folder, tmp_path / "again")
    record = read_record(tmp_path / "again", SHARDS[1])
    assert record is not None
    assert record.shards == {}
    assert [row["status"] for row in record.rows] == ["bad"] * 5
    encoded.clear()
    summary = encode(tiny_model, image_folder, tmp_path / "again", max_bad_fraction=1.0)
    assert (summary.images, len(summary.bad), len(encoded)) == (7, 5, 2)
    assert sorted(path.name for path in (tmp_path / "again/32x32").glob("*.safetensors")) == [SHARDS[0], SHARDS[2]]
    assert verify_store(tmp_path / "again") == []
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")


def test_resume_counts_overflows_before_the_stop(tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path) -> None:
    overflow_encoder(tiny_model, by=1e3)
    encode(tiny_model, image_folder, tmp_path / "whole", precision="fp16")
    encode_until(8, tiny_model, image_folder, tmp_path / "again", precision="fp16")
    # Shards of 5, 5 and 2 in batches of three: 2 + 2 + 1, and as many of mirror images.
    assert encode(tiny_model, image_folder, tmp_path / "again", precision="fp16").fp32_fallbacks == 10
    assert LatentStore(tmp_path / "again").fp32_fallbacks == 10
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")


def test_shard_record_contains_its_index_rows(tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path) -> None:
    encode_until(8, tiny_model, image_folder, tmp_path / "again")
    content = json.loads((tmp_path / "again/.work/latents_rank00_shard000.json").read_text())
    assert content.pop("checksum") == hash_json(content)
    assert list(content["shards"]) == ["32x32"]
    assert [row["row"] for row in content["rows"]] == [0, 1, 2, 3, 4]
    assert content["shards"]["32x32"]["statistics"]["count"] == 5 * 8 * 8
    assert content["redone_batches"] == 0
