"""What is already done of a store that is not complete: a record beside each finished shard.

    STORE/.work/latents_rank00_shard000.json    of the shard of that name, written after it: its bucket, sha256 and
                                                size, the rows of the index, the exact state of its statistics, and how
                                                many batches overflowed; and a sha256 over all that
    STORE/.work/run.json                        which run of the command has the store, so that a process that is left
                                                of an earlier one stops

A shard counts as finished if its record is byte for byte what was written and the shard has the hash that the record
says. The folder goes when the store is complete. A range of the source without a good image has a record and no shard.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_ae.errors import reason
from ldm_ae.files import read_json, write_json
from ldm_ae.latents.files import Written, look_at
from ldm_ae.models import hash_json

WORK, _RUN = ".work", "run.json"
_RECORD_NAME = re.compile(r"latents_rank(\d{2,6})_shard(\d{3,9})\.json")
_log = logging.getLogger("ldm_ae")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One finished shard."""

    bucket: str
    """HxW of the pixels."""
    written: Written | None
    """What the shard must be; None if no image of its range is good, and there is no shard."""
    rows: list[dict[str, Any]]
    """The index rows of its range of the source, bad images too."""
    statistics: dict[str, Any] | None
    """`ChannelStatistics.state` of its `latents`; None without a shard."""
    redone_batches: int
    """Batches that overflowed in the request's precision and were encoded in float32."""


def write_record(store: Path, shard: str, record: Record) -> None:
    """Say that `shard`, a file name, is finished; only after it is."""
    content = {
        "bucket": record.bucket,
        "written": None if record.written is None else record.written._asdict(),
        "rows": record.rows,
        "statistics": record.statistics,
        "redone_batches": record.redone_batches,
    }
    write_json(_path(store, shard), content | {"checksum": hash_json(content)})


def read_record(store: Path, shard: str) -> Record | None:
    """The record of `shard`, None if there is none or if it is not what was written."""
    path = _path(store, shard)
    try:
        content = read_json(path, as_written=True)
        checksum = content.pop("checksum")
        if checksum != hash_json(content):
            raise ValueError("its checksum does not fit")
        written = content.pop("written")
        return Record(written=None if written is None else Written(**written), **content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        _log.warning("%s is damaged (%s); its shard is encoded again", path, reason(error))
        return None


def finished(store: Path, shard: str) -> Record | None:
    """The record of `shard` if the shard lies there as it says; None if it must be made (again)."""
    record = read_record(store, shard)
    if record is None or record.written is None:
        return record
    file = store / record.bucket / shard
    if file.is_file() and look_at(file) == record.written:
        return record
    _log.warning("%s is not what was written; it is encoded again", file)
    return None


def write_run(store: Path, run: str) -> None:
    """Say which run has the store."""
    write_json(store / WORK / _RUN, {"run": run})


def read_run(store: Path) -> str | None:
    """Which run has the store, None if none has it."""
    path = store / WORK / _RUN
    return str(read_json(path)["run"]) if path.is_file() else None


def recorded(store: Path) -> list[str]:
    """The names of the shards that have a record, in the order of the source."""
    found = [match for path in (store / WORK).glob("*.json") if (match := _RECORD_NAME.fullmatch(path.name))]
    found.sort(key=lambda match: (int(match[1]), int(match[2])))
    return [f"{Path(match[0]).stem}.safetensors" for match in found]


def _path(store: Path, shard: str) -> Path:
    return store / WORK / f"{Path(shard).stem}.json"
