"""Writing a latent store: unit by unit, in any order and by any number of runs of the same command."""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ldm_ae.core.errors import RunError, UserError
from ldm_ae.core.seeding import derive_seed, seeded_noise
from ldm_ae.io.files import make_folder, write_json
from ldm_ae.io.locks import LOCK
from ldm_ae.latents.store.additions import Segment, segments, share, write_keys
from ldm_ae.latents.store.claiming import as_recorded, check_same_request
from ldm_ae.latents.store.files import Written, look_at, write_bytes, write_safetensors
from ldm_ae.latents.store.format import (
    ACCOUNT,
    BUCKET_NAME,
    BUCKET_STATISTICS,
    CLASSES,
    DESCRIPTION,
    FORMAT,
    FORMAT_VERSION,
    INDEX,
    SCHEMA,
    SHARD_NAME,
    STATISTICS,
    StoreRequest,
    read_description,
)
from ldm_ae.latents.store.quantize_uint8 import unpack
from ldm_ae.latents.store.records import (
    WORK,
    Record,
    Shard,
    finished,
    read_record,
    read_run,
    recorded,
    write_record,
    write_run,
)
from ldm_ae.latents.store.statistics_files import bucket_statistics, describe_statistics
from ldm_ae.models import ChannelStatistics, GaussianPosterior, hash_json
from ldm_ae.models.stored_rows import ERROR

_SECONDS_UNTIL_SEEN = 90
"""NFS may show the names in a folder as they were up to a minute ago."""


class StoreWriter:
    """A writer of one store: `add_unit` for each unit of work, a range of the source, then `finish`.

    A store of the same request may name its images' place in another way, have been encoded with another batch size,
    and have fewer images, the first of this request: the others are an addition.

    Args:
        path: The store's folder: new, empty, or a store of the same request, whose finished shards are kept.
        request: The encoding request.
        processes: Number of processes among which the units are distributed; it is in the shards' names.
        plan: The `plan` of the writer in the process that has the folder's lock; None in that process itself.
        look_up: The model's function from indices to latents, for the statistics of a store that holds indices alone.
        keys: The images' keys, with which an unfinished store records its images.
        classes: The names of the labels 0, 1, ..., if they have names.

    Raises:
        UserError: The folder holds something else, or a store of another request.
    """

    def __init__(
        self,
        path: str | Path,
        request: StoreRequest,
        *,
        processes: int = 1,
        plan: dict[str, Any] | None = None,
        look_up: Callable[[Tensor], Tensor] | None = None,
        keys: Sequence[str] | None = None,
        classes: Sequence[str] = (),
    ):
        self.path = Path(path)
        self.request = request
        """The request, with the name of the source that an existing store has."""
        self.look_up = look_up
        self._keys = keys
        self._classes = list(classes)
        self.processes = processes
        """The number of processes of an existing store, regardless of who resumes it, so that its names stay."""
        self._additions: list[list[int]] = []
        self.adds = False
        """Whether there are images that the existing store lacks."""
        self._run = secrets.token_hex(8)
        self.complete = False
        """Whether this store is already complete; nothing may be added in that case."""
        if plan is None:
            self.complete = self._claim()
        else:
            self.processes, self._run, self.complete = plan["processes"], plan["run"], plan["complete"]
            self._additions, self.adds = plan["additions"], plan["adds"]
            self.request = replace(request, source=plan["source"])
        self._segments = segments(self._additions, self.processes, request.images, request.shard_size)

    @property
    def plan(self) -> dict[str, Any]:
        """Return the data that the other processes of this run need, as JSON values."""
        return {
            "processes": self.processes, "run": self._run, "complete": self.complete, "additions": self._additions,
            "adds": self.adds, "source": self.request.source,
        }  # fmt: skip

    @property
    def units(self) -> int:
        """Return the number of ranges of at most `shard_size` images, one file for each bucket that they hold."""
        return sum(segment.units for segment in self._segments)

    @property
    def stored_units(self) -> int:
        """Return the number of units that the existing store had."""
        return self.units - (self._segments[-1].units if self.adds else 0)

    def share(self, rank: int, processes: int) -> range:
        """Return the units of one process."""
        return share(self.units, rank, processes)

    def indices(self, unit: int) -> range:
        """Return the images of a unit, by their position in the source."""
        segment, number = self._find(unit)
        return segment.indices(number)

    def shard_name(self, unit: int) -> str:
        """Return the file name of a unit, in the folder of each of its buckets."""
        segment, number = self._find(unit)
        return segment.shard_name(number)

    def _find(self, unit: int) -> tuple[Segment, int]:
        """Return a unit's segment, and its number there. Callers with units of another size may have more units."""
        for segment in self._segments[:-1]:
            if unit < segment.units:
                return segment, unit
            unit -= segment.units
        return self._segments[-1], unit

    def finished(self, unit: int) -> Record | None:
        """Return the record of a finished unit, its shards read and compared; None if it must be made."""
        return finished(self.path, self.shard_name(unit))

    def _claim(self) -> bool:
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file; give a folder for the store")
        make_folder(self.path)
        description = self.path / DESCRIPTION
        if not description.is_file():
            if foreign := sorted(entry.name for entry in self.path.iterdir() if not _is_ours(entry.name)):
                raise UserError(f"{self.path} is not empty ({foreign[0]}) and is not a latent store; give a new folder")
            self.begin_records()
            self.mark_unfinished()
            return False
        found = read_description(self.path)
        self.request = as_recorded(found["request"], self.request)
        check_same_request(self.path, found["request"], self.request)
        before, now = found["request"]["images"], self.request.images
        grown = now > before and self._keys is not None
        if (before != now and not grown) or (before == now and found["request"]["keys_hash"] != self.request.keys_hash):
            raise UserError(f"{self.path} is a store of {before} other images; give another folder for the store")
        self.adds = grown
        self.request = replace(self.request, source=found["request"]["source"])
        self._additions = found.get("additions", []) + ([[before, self.processes]] if self.adds else [])
        self.processes = found.get("processes", 1)
        for file in (*self.path.glob("*"), *self.path.glob("*x*/*"), *self.path.glob(f"{WORK}/*")):
            if _is_temporary(file.name):
                file.unlink()
        if found.get("files") is not None:
            self._remove_records()
            return True
        self.begin_records()
        if self.adds:
            self.mark_unfinished()
        names = set(recorded(self.path))
        self._remove_shards(lambda file: file.name not in names)
        return False

    def begin_records(self) -> None:
        """Create the folder for this run's records."""
        make_folder(self.path / WORK)
        write_run(self.path, self._run)
        if self._keys is not None:
            write_keys(self.path, self._keys)

    def mark_unfinished(self) -> None:
        """Write the description without files, which makes the records count."""
        write_json(self.path / DESCRIPTION, self._description(None))
        self.complete = False

    def _all_recorded(self) -> list[str]:
        """Return `recorded`, once a shared file system shows the files of the other processes."""
        end = time.monotonic() + _SECONDS_UNTIL_SEEN
        while len(names := recorded(self.path)) < self.units and time.monotonic() < end:
            time.sleep(1)
        return names

    def _remove_shards(self, is_stale: Callable[[Path], bool]) -> None:
        """Remove stale shards, and the remaining files of a bucket without a shard."""
        for folder in self.path.glob("*x*"):
            if not BUCKET_NAME.fullmatch(folder.name):
                continue
            shards = [file for file in folder.iterdir() if SHARD_NAME.fullmatch(file.name)]
            stale = [file for file in shards if is_stale(file)]
            for file in stale:
                file.unlink()
            if len(stale) == len(shards):
                (folder / BUCKET_STATISTICS).unlink(missing_ok=True)
                with suppress(OSError):  # It contains an unrelated file.
                    folder.rmdir()

    def _remove_records(self) -> None:
        """Remove the records, which a complete store no longer needs."""
        if (self.path / WORK).is_dir():
            shutil.rmtree(self.path / WORK)

    def _description(
        self, files: dict[str, Written] | None, redone_by_file: dict[str, int] | None = None
    ) -> dict[str, Any]:
        content: dict[str, Any] = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "request": self.request.to_json(),
        }
        content["processes"] = self.processes
        if self._additions:
            content["additions"] = self._additions
        if self._classes:
            content["classes"] = self._classes
        if files is not None:
            content["files"] = {name: written._asdict() for name, written in sorted(files.items())}
            content["redone_batches"] = sum((redone_by_file or {}).values())
            content["redone_by_file"] = redone_by_file or {}
        return content | {"checksum": hash_json(content)}

    def add_unit(
        self,
        unit: int,
        buckets: dict[str, dict[str, Tensor]],
        rows: Sequence[dict[str, Any]],
        *,
        fp32_fallbacks: int = 0,
    ) -> None:
        """Add a range of the source: its valid images' tensors, and a manifest row for each image, valid or bad.

        Args:
            unit: The number of the range.
            buckets: By HxW of the pixels, tensors as in the module's description, in the stored dtype and in the order
                of the source; empty if no image of the range is valid.
            rows: Manifest rows in the order of the source, those of valid images with their `bucket`, `shard` and `row`
                not yet set.
            fp32_fallbacks: Number of batches that overflowed in the request's precision and were encoded in float32.

        Raises:
            RunError: The disk is full, or a later run of the command now has the store.
        """
        assert not self.complete, "a complete store takes no more units"
        if read_run(self.path) != self._run:
            raise RunError(f"another run of this command is now writing {self.path}; this run ends")
        name = self.shard_name(unit)
        shards: dict[str, Shard] = {}
        for bucket in sorted(buckets):
            tensors = buckets[bucket]
            good = [row for row in rows if row["status"] == "ok" and row["bucket"] == bucket]
            assert all(len(tensor) == len(good) for tensor in tensors.values()), "one row per valid image"
            for position, row in enumerate(good):
                row |= {"shard": name, "row": position}
            folder = self.path / bucket
            folder.mkdir(exist_ok=True)
            written = write_safetensors(folder / name, tensors, self.request.header(len(good)))
            # Compute them from the stored values, after rounding and in their layout, which changes the order of a sum,
            # so that anyone can compute the same from the files.
            statistics = self.statistics(tensors, [row["key"] for row in good])
            shards[bucket] = Shard(written, statistics.state())
        write_record(self.path, name, Record(shards=shards, rows=list(rows), fp32_fallbacks=fp32_fallbacks))

    def statistics(self, tensors: dict[str, Tensor], keys: Sequence[str]) -> ChannelStatistics:
        """Return a shard's statistics of latents: stored, drawn from the moments of a lean store, or looked up."""
        if self.request.indices_alone:
            assert self.look_up is not None, "a writer of indices alone has the model"
            latents = self.look_up(tensors["indices"]).cpu().contiguous()
        else:
            latents = latents_of(unpack(tensors), keys, self.request)
        statistics = ChannelStatistics(self.request.scaling["channels"])
        statistics.update(latents, squared_error=tensors.get(ERROR))
        return statistics

    def finish(self, account: dict[str, Any] | None = None) -> None:
        """Write index and statistics from the records of all units, then mark the store complete.

        Args:
            account: The source's account, as JSON values.

        Raises:
            RunError: A unit has no record.
            UserError: No image is valid.
        """
        assert not self.complete, "a store is finished only once"
        statistics = ChannelStatistics(self.request.scaling["channels"])
        files: dict[str, Written] = {}
        tables: list[pa.Table] = []
        redone_by_file: dict[str, int] = {}
        good = 0
        first_bad: dict[str, Any] = {}
        names = self._all_recorded()
        for name in names:
            record = read_record(self.path, name)
            if record is None:
                raise RunError(f"the record of {name} in {self.path / WORK} is damaged; run the same command again")
            tables.append(pa.Table.from_pylist(record.rows, schema=SCHEMA))
            good += sum(row["status"] == "ok" for row in record.rows)
            first_bad = first_bad or next((row for row in record.rows if row["status"] == "bad"), {})
            if record.fp32_fallbacks:
                redone_by_file[name] = record.fp32_fallbacks
            for bucket, shard in record.shards.items():
                files[f"{bucket}/{name}"] = shard.written
                statistics.merge(ChannelStatistics.from_state(shard.statistics))
        if (rows := sum(map(len, tables))) != self.request.images:
            raise RunError(
                f"{self.path} holds {rows} of {self.request.images} images although every process has finished; do all "
                "see the same file system?"
            )
        if good == 0:
            raise UserError(
                f"none of the {self.request.images} images can be used; the first, {first_bad['key']}: "
                f"{first_bad['error']}"
            )
        self._remove_shards(lambda file: f"{file.parent.name}/{file.name}" not in files)
        sink = pa.BufferOutputStream()
        table = pa.concat_tables(tables)
        if account is not None:
            table = table.replace_schema_metadata({ACCOUNT: json.dumps(account).encode()})
        pq.write_table(table, sink, compression="zstd")
        files[INDEX] = write_bytes(self.path / INDEX, memoryview(sink.getvalue()))
        write_json(self.path / STATISTICS, describe_statistics(statistics, images=good))
        files[STATISTICS] = look_at(self.path / STATISTICS)
        if self._classes:
            write_json(self.path / CLASSES, self._classes)
            files[CLASSES] = look_at(self.path / CLASSES)
        content = bucket_statistics(statistics)
        buckets = sorted({name.partition("/")[0] for name in files if "/" in name})
        for bucket in buckets if self.request.has_bucket_statistics else ():
            name = f"{bucket}/{BUCKET_STATISTICS}"
            files[name] = write_bytes(self.path / name, content)
        write_json(self.path / DESCRIPTION, self._description(files, redone_by_file))
        self.complete = True
        self._remove_records()


def latents_of(tensors: Mapping[str, Tensor], keys: Sequence[str], request: StoreRequest) -> Tensor:
    """Return the `latents` (N, C, h, w) of a shard's valid images, drawn from its moments if it is lean."""
    if request.content != "lean":
        return tensors["latents"].contiguous()
    posterior = GaussianPosterior(tensors["moments"].contiguous())
    if request.latents == "mode":
        return posterior.mode()
    seeds = torch.tensor([derive_seed(request.seed, key, "") for key in keys])
    return posterior.sample(noise=seeded_noise(seeds, tuple(posterior.mean.shape[1:])))


def _is_ours(name: str) -> bool:
    return name in (LOCK, WORK) or _is_temporary(name)


def _is_temporary(name: str) -> bool:
    """Return whether `ldm_ae.io.files.writing` left the file behind when its process was killed."""
    return name.startswith(".") and name.endswith(".tmp")
