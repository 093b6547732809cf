"""A data set that has grown since its store was made: the store's images in their order, then the new ones.

Stored images keep their place and their bytes. The new images form separate units, after the others, and the store's
description records where each addition begins. The keys of an unfinished store lie beside its records:

    STORE/.work/keys.parquet                    the keys of all images in the order of the store
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ldm_ae.core.errors import UserError, reason
from ldm_ae.data import RawImage, Source, Wrapped
from ldm_ae.latents.store.files import write_bytes
from ldm_ae.latents.store.format import DESCRIPTION, INDEX, StoreRequest, read_description
from ldm_ae.latents.store.records import WORK

_KEYS = "keys.parquet"


class Arranged(Wrapped):
    """A source with its images in another order."""

    name = "arranged"

    def __init__(self, source: Source, order: Sequence[int]):
        super().__init__(source)
        self._order = np.asarray(order, np.int64)

    def key(self, index: int) -> str:
        """Return the source's key."""
        return self._source.key(int(self._order[index]))

    def __getitem__(self, index: int) -> RawImage:
        return self._source[int(self._order[index])]


def keys_of(source: Source) -> list[str]:
    """Return the keys of all images."""
    return [source.key(index) for index in range(len(source))]


def hash_keys(keys: Iterable[str]) -> str:
    """Return the sha256 of keys in their order."""
    digest = hashlib.sha256()
    for key in keys:
        digest.update(key.encode() + b"\0")
    return digest.hexdigest()


def join(
    folder: Path, source: Source, request: StoreRequest, *, keep_classes: bool
) -> tuple[Source, StoreRequest, list[str]]:
    """Return the source in the order of the existing store, its request, and its keys.

    Args:
        folder: The store's folder.
        source: The images.
        request: The request without the hash of the keys.
        keep_classes: Whether the source's classes get the numbers that they have in the store.
    """
    source, keys = _arrange(folder, _keep_classes(folder, source) if keep_classes else source)
    return source, replace(request, keys_hash=hash_keys(keys)), keys


def _keep_classes(path: Path, source: Source) -> Source:
    """Return the source with the class numbers of the store at `path`, new classes last."""
    names = source.account().classes
    stored: list[str] = read_description(path).get("classes", []) if (path / DESCRIPTION).is_file() else []
    if not names or not stored or names == stored:
        return source
    return source.with_classes([*stored, *(name for name in names if name not in stored)], str(path))


def _arrange(path: Path, source: Source) -> tuple[Source, list[str]]:
    """Return the source in the order of the store at `path`, new images last, and its keys; unchanged without a store.

    Raises:
        UserError: Images of the store are missing from the source, or it does not record which images it has.
    """
    keys = keys_of(source)
    if not (path / DESCRIPTION).is_file():
        return source, keys
    description = read_description(path)
    if description["request"].get("keys_hash") == hash_keys(keys):
        return source, keys
    stored = _stored_keys(path, description)
    places = {key: place for place, key in enumerate(keys)}
    if len(places) < len(keys):
        raise UserError(f"two images have the same key, so those of {path} cannot be identified; give another folder")
    if missing := [key for key in stored if key not in places]:
        raise UserError(
            f"{path} holds {len(stored)} images, of which {len(missing)} are not among these (the first is "
            f"{missing[0]}; here the first of {len(keys)} is {keys[0]}); give another folder for the store"
        )
    known = set(stored)
    order = [*stored, *(key for key in keys if key not in known)]
    return Arranged(source, [places[key] for key in order]), order


def write_keys(path: Path, keys: Sequence[str]) -> None:
    """Write the keys of the images that an unfinished store will hold."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"key": pa.array(keys, pa.string())}), sink, compression="zstd")
    write_bytes(path / WORK / _KEYS, memoryview(sink.getvalue()))


def _stored_keys(path: Path, description: dict[str, Any]) -> list[str]:
    """Return the keys of the images that the store will hold, in its order."""
    file = path / INDEX if description.get("files") is not None else path / WORK / _KEYS
    try:
        table = pq.read_table(file, columns=["key"])
        # The file has more keys if the process was killed before the description recorded an addition.
        keys: list[str] = table["key"].to_pylist()[: description["request"]["images"]]
    except (OSError, KeyError, TypeError, pa.ArrowException) as error:
        raise UserError(
            f"{path} was made from other images, and {file.name} does not list them ({reason(error)}); "
            "give another folder for the store"
        ) from error
    if hash_keys(keys) != description["request"]["keys_hash"]:
        raise UserError(f"{file} is damaged: it does not name the images of the store")
    return keys


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Images that were encoded together, in one or several runs of the command."""

    start: int
    stop: int
    processes: int
    """Number of processes among which its units were distributed; it is in the shards' names."""
    first_rank: int
    """First rank in the shards' names; earlier segments have the lower numbers."""
    shard_size: int

    @property
    def units(self) -> int:
        """Return the number of ranges of `shard_size` images."""
        return -(-(self.stop - self.start) // self.shard_size)

    def indices(self, unit: int) -> range:
        """Return the images of one of its units."""
        start = self.start + unit * self.shard_size
        return range(start, min(start + self.shard_size, self.stop))

    def shard_name(self, unit: int) -> str:
        """Return the file name of one of its units."""
        shares = (share(self.units, rank, self.processes) for rank in range(self.processes))
        rank, first = next(((rank, found.start) for rank, found in enumerate(shares) if unit in found), (0, 0))
        return f"latents_rank{self.first_rank + rank:02d}_shard{unit - first:03d}.safetensors"


def share(units: int, rank: int, processes: int) -> range:
    """Return the units of one process: the ranges are consecutive, and every unit is in exactly one."""
    return range(units * rank // processes, units * (rank + 1) // processes)


def segments(additions: Sequence[Sequence[int]], processes: int, images: int, shard_size: int) -> list[Segment]:
    """Return the segments of a store from its additions: (first image, processes) of each."""
    begins = [(0, processes), *((start, count) for start, count in additions)]
    stops = [*(start for start, _ in begins[1:]), images]
    found: list[Segment] = []
    for (start, count), stop in zip(begins, stops, strict=True):
        first = found[-1].first_rank + found[-1].processes if found else 0
        found.append(Segment(start=start, stop=stop, processes=count, first_rank=first, shard_size=shard_size))
    return found
