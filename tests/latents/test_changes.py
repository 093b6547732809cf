"""The same command over a complete store detects changes and encodes only changed images again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ldm_ae.data import BadImage, RawImage, Source
from ldm_ae.latents import LatentDataset, LatentStore, verify_store
from ldm_ae.latents.store.source_hashes import HashingSource, SourceHashes
from ldm_ae.latents.store.writer import StoreWriter
from ldm_ae.models import KLAutoencoder
from tests.latents.helpers import contents, encode, overflow_encoder
from tests.latents.test_processes import encode_together
from tests.latents.test_resume import encode_until, encoded  # noqa: F401 - a fixture
from tests.pictures import smooth_picture

SECOND = "32x32/latents_rank00_shard001.safetensors"


def paths(images: Path) -> list[Path]:
    return sorted(images.glob("*/*.png"))


def inodes(store: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in store.glob("32x32/*.safetensors")}


@pytest.mark.slow
def test_only_the_file_of_a_changed_image_is_encoded_again(
    tiny_model: KLAutoencoder, image_folder: Path, store: Path, tmp_path: Path, encoded: list[str],  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    before = inodes(store)
    changed = paths(image_folder)[7]
    smooth_picture(99, 48, 48).save(changed)
    summary = encode(tiny_model, image_folder, store)
    assert not summary.already_complete
    key = changed.relative_to(image_folder).as_posix()
    assert caplog.messages == [f"{key}: changed since they were encoded; their file is encoded again"]
    assert encoded == [path.relative_to(image_folder).as_posix() for path in paths(image_folder)[5:10]]
    assert {name for name, inode in inodes(store).items() if inode != before[name]} == {Path(SECOND).name}
    encode(tiny_model, image_folder, tmp_path / "fresh")
    assert contents(store) == contents(tmp_path / "fresh")
    assert verify_store(store) == []
    seen: list[tuple[int, int]] = []
    assert encode(tiny_model, image_folder, store, progress=lambda *done: seen.append(done)).already_complete
    assert seen == [(5, 12), (10, 12), (12, 12), (12, 12)]


@pytest.mark.slow
def test_check_false_reads_no_images(tiny_model: KLAutoencoder, image_folder: Path, store: Path) -> None:
    before = contents(store)
    for path in paths(image_folder):
        smooth_picture(99, 48, 48).save(path)
    assert encode(tiny_model, image_folder, store, check=False).already_complete
    assert contents(store) == before
    assert not encode(tiny_model, image_folder, store).already_complete


@pytest.mark.slow
def test_broken_and_repaired_images_update_the_store(
    tiny_model: KLAutoencoder,
    image_folder: Path,
    tmp_path: Path,
    encoded: list[str],  # noqa: F811
) -> None:
    files = paths(image_folder)
    good = files[0].read_bytes()
    files[0].write_bytes(b"no picture")
    summary = encode(tiny_model, image_folder, tmp_path / "store", max_bad_fraction=1.0)
    assert (summary.images, len(summary.bad)) == (11, 1)
    encoded.clear()
    assert encode(tiny_model, image_folder, tmp_path / "store", max_bad_fraction=1.0).already_complete
    files[0].write_bytes(good)
    for file in files[10:]:  # the whole third shard
        file.write_bytes(b"no picture either")
    summary = encode(tiny_model, image_folder, tmp_path / "store", max_bad_fraction=1.0)
    assert (summary.images, len(summary.bad), len(encoded)) == (10, 2, 5)
    encode(tiny_model, image_folder, tmp_path / "fresh", max_bad_fraction=1.0)
    assert contents(tmp_path / "store") == contents(tmp_path / "fresh")
    assert verify_store(tmp_path / "store") == []


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_damaged_shard_of_a_complete_store_is_encoded_again(
    damage: str,
    tiny_model: KLAutoencoder,
    image_folder: Path,
    store: Path,
    encoded: list[str],  # noqa: F811
) -> None:
    before = contents(store)
    data = bytearray(before[SECOND])
    data[-1] ^= 1
    (store / SECOND).unlink()
    if damage == "flip":
        (store / SECOND).write_bytes(data)
    assert not encode(tiny_model, image_folder, store).already_complete
    assert len(encoded) == 5
    assert contents(store) == before


@pytest.mark.slow
def test_image_changed_between_runs_is_encoded_again(
    tiny_model: KLAutoencoder,
    image_folder: Path,
    tmp_path: Path,
    encoded: list[str],  # noqa: F811
) -> None:
    encode_until(11, tiny_model, image_folder, tmp_path / "store")
    smooth_picture(99, 48, 48).save(paths(image_folder)[0])
    encoded.clear()
    encode(tiny_model, image_folder, tmp_path / "store")
    assert len(encoded) == 5 + 2
    encode(tiny_model, image_folder, tmp_path / "fresh")
    assert contents(tmp_path / "store") == contents(tmp_path / "fresh")


@pytest.mark.slow
def test_kill_while_reopening_leaves_the_store_complete(
    tiny_model: KLAutoencoder, image_folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(store)
    smooth_picture(99, 48, 48).save(paths(image_folder)[0])

    def killed(self: Any) -> None:
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "mark_unfinished", killed)
        with pytest.raises(InterruptedError):
            encode(tiny_model, image_folder, store)
    assert len(LatentStore(store)) == 12
    assert verify_store(store) == []
    assert encode(tiny_model, image_folder, store, check=False).already_complete
    assert contents(store) == before


@pytest.mark.slow
def test_overflow_counts_of_unchanged_shards_are_kept(
    tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path
) -> None:
    overflow_encoder(tiny_model, by=1e3)
    encode(tiny_model, image_folder, tmp_path / "store", precision="fp16")
    names = [f"latents_rank00_shard{number:03d}.safetensors" for number in range(3)]
    assert LatentStore(tmp_path / "store").redone_by_file == dict(zip(names, (4, 4, 2), strict=True))
    smooth_picture(99, 48, 48).save(paths(image_folder)[0])
    assert encode(tiny_model, image_folder, tmp_path / "store", precision="fp16").fp32_fallbacks == 10


@pytest.mark.slow
def test_change_is_detected_across_processes(
    tiny_model: KLAutoencoder,
    image_folder: Path,
    store: Path,
    tmp_path: Path,
    encoded: list[str],  # noqa: F811
) -> None:
    smooth_picture(99, 48, 48).save(paths(image_folder)[11])  # among the images of the second process
    found = encode_together(2, tiny_model, image_folder, store)
    assert [summary.already_complete for summary in found] == [False, False]
    assert len(encoded) == 2
    encode(tiny_model, image_folder, tmp_path / "fresh")
    assert contents(store) == contents(tmp_path / "fresh")


class Listed(Source):
    """Images by hand."""

    name = "listed"
    accepts = "a list"

    def __init__(self, images: list[RawImage | None]):
        self.images = images

    @classmethod
    def open(cls, location: str) -> Source | None:
        return None

    def __len__(self) -> int:
        return len(self.images)

    def key(self, index: int) -> str:
        return str(index)

    def __getitem__(self, index: int) -> RawImage:
        if (image := self.images[index]) is None:
            raise BadImage("gone")
        return image


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"label": 2}, False),
        ({"caption": "another"}, False),
        ({"caption": None}, False),
        ({"data": b"other bytes"}, False),
    ],
)
def test_change_detection_compares_bytes_labels_and_captions(changes: dict[str, Any], same: bool) -> None:
    image = RawImage("0", b"bytes", 1, "a caption")
    now = HashingSource(Listed([image])).look_at(0)
    row = now._asdict() | {"key": "0", "status": "ok"}
    source = HashingSource(Listed([image._replace(**changes)]))
    assert SourceHashes(source, workers=0, check=True).unchanged(range(1), [row]) is same
    assert SourceHashes(source, workers=0, check=False).unchanged(range(1), [row])
    gone = HashingSource(Listed([None]))
    assert not SourceHashes(gone, workers=0, check=True).unchanged(range(1), [row])
    bad = {"key": "0", "status": "bad", "source_hash": None, "label": -1, "caption": None}
    assert SourceHashes(gone, workers=0, check=True).unchanged(range(1), [bad])
    assert not SourceHashes(source, workers=0, check=True).unchanged(range(1), [bad])


def test_label_and_caption_changes_are_detected(
    tiny_model: KLAutoencoder,
    image_folder: Path,
    tmp_path: Path,
    encoded: list[str],  # noqa: F811
) -> None:
    first = paths(image_folder)[0]
    first.with_suffix(".txt").write_text("a first picture")
    encode(tiny_model, image_folder, tmp_path / "store")
    rows = LatentStore(tmp_path / "store").index.to_pylist()
    assert [row["caption"] for row in rows[:2]] == ["a first picture", None]
    encoded.clear()
    first.with_suffix(".json").write_text('{"label": 9}')
    assert not encode(tiny_model, image_folder, tmp_path / "store").already_complete
    assert len(encoded) == 5
    store = LatentStore(tmp_path / "store")
    assert store.index["label"].to_pylist()[:2] == [9, 0]
    assert LatentDataset(store)[0]["label"] == 9
    assert verify_store(tmp_path / "store") == []
