"""Checks whether a complete store is still valid, and reverts it to an unfinished one if not.

Valid shards get the records that they had before the store was complete; the others are encoded as after a kill.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from safetensors import SafetensorError, safe_open

from ldm_ae.latents.store.files import Written, look_at
from ldm_ae.latents.store.reader import LatentStore
from ldm_ae.latents.store.records import Record, Shard, write_record
from ldm_ae.latents.store.source_hashes import SourceHashes
from ldm_ae.latents.store.writer import StoreWriter


def still_holds(
    writer: StoreWriter, units: range, source_hashes: SourceHashes, progress: Callable[[int, int], None] | None = None
) -> bool:
    """Return whether the files of these units have their hashes and their images are those that were encoded.

    Args:
        writer: The writer of a complete store.
        units: The units to check.
        source_hashes: The images.
        progress: Called after every unit with the number of checked images and their total.

    Raises:
        UserError: The store's description or index is damaged.
    """
    store = LatentStore(writer.path)
    done, total = 0, sum(len(writer.indices(unit)) for unit in units)
    for unit in units:
        rows = _rows(store, writer.indices(unit))
        for bucket in _buckets(rows):
            name = f"{bucket}/{writer.shard_name(unit)}"
            if not (store.path / name).is_file() or look_at(store.path / name)._asdict() != store.files[name]:
                return False
        if not source_hashes.unchanged(writer.indices(unit), rows):
            return False
        done += len(rows)
        if progress is not None:
            progress(done, total)
    return True


def reopen(writer: StoreWriter) -> None:
    """Write records of a complete store's shards, then mark it unfinished.

    If the process is killed in between, the store is still the complete one.
    """
    store = LatentStore(writer.path)
    writer.begin_records()
    for unit in range(writer.stored_units):
        rows = _rows(store, writer.indices(unit))
        name = writer.shard_name(unit)
        shards = {bucket: _read_shard(writer, store, bucket, rows) for bucket in _buckets(rows)}
        valid = {bucket: shard for bucket, shard in shards.items() if shard is not None}
        if len(valid) == len(shards):  # Without a record it is encoded again.
            record = Record(shards=valid, rows=rows, fp32_fallbacks=store.redone_by_file.get(name, 0))
            write_record(writer.path, name, record)
    writer.mark_unfinished()


def _read_shard(writer: StoreWriter, store: LatentStore, bucket: str, rows: list[dict[str, Any]]) -> Shard | None:
    """Return the contents of a shard's record; None if the shard cannot be read."""
    [file] = {f"{bucket}/{row['shard']}" for row in rows if row["bucket"] == bucket}
    try:
        with safe_open(store.path / file, framework="pt") as shard:
            tensors = {name: shard.get_tensor(name) for name in store.request.latents_tensors}
    except (SafetensorError, OSError):
        return None
    keys = [row["key"] for row in rows if row["bucket"] == bucket]
    return Shard(Written(**store.files[file]), writer.statistics(tensors, keys).state())


def _rows(store: LatentStore, indices: range) -> list[dict[str, Any]]:
    return store.index.slice(indices.start, len(indices)).to_pylist()


def _buckets(rows: list[dict[str, Any]]) -> list[str]:
    return sorted({row["bucket"] for row in rows if row["status"] == "ok"})
