"""A complete store, looked at again: whether all of it still holds, and if not, back to an unfinished one.

What holds gets the records that it had before the store was complete, and the rest is encoded as after a kill.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from safetensors import SafetensorError, safe_open

from ldm_ae.latents.files import Written, look_at
from ldm_ae.latents.originals import Originals
from ldm_ae.latents.reader import LatentStore
from ldm_ae.latents.work import Record, write_record
from ldm_ae.latents.writer import StoreWriter


def still_holds(
    writer: StoreWriter, units: range, originals: Originals, progress: Callable[[int, int], None] | None = None
) -> bool:
    """Whether the files of these units have their hashes and their images are those that were encoded.

    Args:
        writer: Of a complete store.
        units: Those to look at.
        originals: The images.
        progress: Called after every unit with the number of images looked at and their total.

    Raises:
        UserError: the store's description or index is damaged.
    """
    store = LatentStore(writer.path)
    done, total = 0, sum(len(writer.indices(unit)) for unit in units)
    for unit in units:
        rows = _rows(store, writer.indices(unit))
        file = _file(rows)
        if file is not None:
            path = store.path / file
            if not path.is_file() or look_at(path)._asdict() != store.files[file]:
                return False
        if not originals.unchanged(writer.indices(unit), rows):
            return False
        done += len(rows)
        if progress is not None:
            progress(done, total)
    return True


def reopen(writer: StoreWriter) -> None:
    """Make records of a complete store's shards, then mark it unfinished.

    Killed in between, it is the complete store that it was.
    """
    store = LatentStore(writer.path)
    writer.begin_records()
    for unit in range(writer.units):
        rows = _rows(store, writer.indices(unit))
        file = _file(rows)
        written, state = None, None
        if file is not None:
            try:
                with safe_open(store.path / file, framework="pt") as shard:
                    tensors = {name: shard.get_tensor(name) for name in store.request.latents_tensors}
            except (SafetensorError, OSError):
                continue  # without a record it is encoded again
            written = Written(**store.files[file])
            keys = [row["key"] for row in rows if row["status"] == "ok"]
            state = writer.statistics(tensors, keys).state()
        name = writer.shard_name(unit)
        record = Record(
            bucket=file.partition("/")[0] if file else "", written=written, rows=rows, statistics=state,
            redone_batches=store.redone_by_file.get(name, 0),
        )  # fmt: skip
        write_record(writer.path, name, record)
    writer.mark_unfinished()


def _rows(store: LatentStore, indices: range) -> list[dict[str, Any]]:
    return store.index.slice(indices.start, len(indices)).to_pylist()


def _file(rows: list[dict[str, Any]]) -> str | None:
    return next((f"{row['bucket']}/{row['shard']}" for row in rows if row["status"] == "ok"), None)
