"""The finished parts of a store that is not complete: a record beside each finished shard.

    STORE/.work/latents_rank00_shard000.json    record of a range of the source, written after its shards, which have
                                                this name in the folders of their buckets: sha256 and size of each, the
                                                exact state of its statistics, the rows of the index, the number of
                                                batches that overflowed; and a sha256 over all that
    STORE/.work/run.json                        the run of the command that has the store, so that a process that
                                                remains of an earlier run stops

A range is finished if its record is byte for byte as written and its shards have the recorded hashes. The folder is
removed when the store is complete. A range without a valid image has a record and no shard.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ldm_ae.core.errors import reason
from ldm_ae.io.files import read_json, write_json
from ldm_ae.latents.store.files import Written, look_at
from ldm_ae.models import hash_json

WORK, _RUN = ".work", "run.json"
_RECORD_NAME = re.compile(r"latents_rank(\d{2,6})_shard(\d{3,9})\.json")
_log = logging.getLogger("ldm_ae")


class Shard(NamedTuple):
    """One file of latents."""

    written: Written
    """The required size and sha256 of the file."""
    statistics: dict[str, Any]
    """`ChannelStatistics.state` of its `latents`."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One finished range of the source."""

    shards: dict[str, Shard]
    """Shards by bucket, HxW of the pixels; empty if no image of the range is valid."""
    rows: list[dict[str, Any]]
    """The index rows of the range, including bad images."""
    fp32_fallbacks: int
    """Number of batches that overflowed in the request's precision and were encoded in float32."""


def write_record(store: Path, shard: str, record: Record) -> None:
    """Record that the shards called `shard` are finished; call it only after they are."""
    content = {
        "shards": {
            bucket: {"written": part.written._asdict(), "statistics": part.statistics}
            for bucket, part in sorted(record.shards.items())
        },
        "rows": record.rows,
        "redone_batches": record.fp32_fallbacks,
    }
    write_json(_path(store, shard), content | {"checksum": hash_json(content)})


def read_record(store: Path, shard: str) -> Record | None:
    """Return the record of the shards called `shard`; None if it does not exist or is not as written."""
    path = _path(store, shard)
    try:
        content = read_json(path, as_written=True)
        checksum = content.pop("checksum")
        if checksum != hash_json(content):
            raise ValueError("its checksum does not match")
        shards = {
            bucket: Shard(Written(**part["written"]), part["statistics"])
            for bucket, part in content.pop("shards").items()
        }
        # An earlier version recorded captions that are not valid Unicode, which the index cannot hold.
        json.dumps(content["rows"], ensure_ascii=False).encode()
        return Record(shards=shards, rows=content["rows"], fp32_fallbacks=content["redone_batches"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        _log.warning("%s is damaged (%s); its shard is encoded again", path, reason(error))
        return None


def finished(store: Path, shard: str) -> Record | None:
    """Return the record of the shards called `shard` if they match it; None if they must be made (again)."""
    record = read_record(store, shard)
    for bucket, part in record.shards.items() if record is not None else ():
        file = store / bucket / shard
        if not file.is_file() or look_at(file) != part.written:
            _log.warning("the content of %s has changed; it is encoded again", file)
            return None
    return record


def write_run(store: Path, run: str) -> None:
    """Record which run has the store."""
    write_json(store / WORK / _RUN, {"run": run})


def read_run(store: Path) -> str | None:
    """Return the run that has the store; None if none has it."""
    path = store / WORK / _RUN
    return str(read_json(path)["run"]) if path.is_file() else None


def recorded(store: Path) -> list[str]:
    """Return the names of the shards that have a record, in the order of the source."""
    found = [match for path in (store / WORK).glob("*.json") if (match := _RECORD_NAME.fullmatch(path.name))]
    found.sort(key=lambda match: (int(match[1]), int(match[2])))
    return [f"{Path(match[0]).stem}.safetensors" for match in found]


def _path(store: Path, shard: str) -> Path:
    return store / WORK / f"{Path(shard).stem}.json"
