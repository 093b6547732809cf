"""Comparison of images with those that were encoded: by the hash of their bytes, with their labels and captions.

Size and time of a file would be faster to read. They are not available where images lie in tars, Parquet files or on
the hub, and copying, unpacking and `touch` falsify them. Reading is much faster than decoding and encoding.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset

from ldm_ae.core.processes import worker_processes
from ldm_ae.data import BadImage, RawImage, Wrapped

_log = logging.getLogger("ldm_ae")


class HashingSource(Wrapped):
    """A source whose captions begin with the sha256 of the image's bytes.

    The bytes are read in a worker process, and the loader passes a caption on unchanged.
    """

    name = "hashing"

    def __getitem__(self, index: int) -> RawImage:
        raw = self._source[index]
        digest = hashlib.sha256(raw.data).hexdigest()
        return raw._replace(caption=digest if raw.caption is None else digest + raw.caption)

    @staticmethod
    def split(caption: str | None) -> tuple[str, str | None]:
        """Return (sha256, the image's own caption)."""
        assert caption is not None
        return caption[:64], caption[64:] or None

    def look_at(self, index: int) -> Original:
        """Return the current state of an image."""
        try:
            raw = self[index]
        except (BadImage, OSError):
            return Original(None, -1, None)
        digest, caption = self.split(raw.caption)
        return Original(digest, -1 if raw.label is None else raw.label, caption)


class Original(NamedTuple):
    """The properties of an image's source that the store keeps."""

    source_hash: str | None
    """sha256 of the image's bytes; None if it cannot be read."""
    label: int
    caption: str | None


class SourceHashes:
    """Comparison of images with the rows of an index, each range once.

    Args:
        source: The images.
        workers: Number of processes that read.
        check: If false, every image counts as unchanged and is not read.
    """

    def __init__(self, source: HashingSource, *, workers: int, check: bool):
        self._source = source
        self._workers = workers
        self._check = check
        self._known: dict[int, bool] = {}

    def unchanged(self, indices: range, rows: Sequence[dict[str, Any]]) -> bool:
        """Return whether the images `indices` match these rows; log the first that does not."""
        if not self._check:
            return True
        if indices.start not in self._known:
            loader: DataLoader[Original] = DataLoader(
                _Looks(self._source),
                sampler=indices,
                batch_size=None,
                num_workers=worker_processes(self._workers),
                collate_fn=_as_is,
            )
            changed = [row["key"] for row, now in zip(rows, loader, strict=True) if not _is_same(row, now)]
            if changed:
                others = f" and {len(changed) - 1} more" if changed[1:] else ""
                _log.warning("%s%s: changed since they were encoded; their file is encoded again", changed[0], others)
            self._known[indices.start] = not changed
        return self._known[indices.start]


class _Looks(Dataset[Original]):
    def __init__(self, source: HashingSource):
        self._source = source

    def __getitem__(self, index: int) -> Original:
        return self._source.look_at(index)


def _is_same(row: dict[str, Any], now: Original) -> bool:
    if row["status"] != "ok":  # Neither label nor caption of a bad image is kept.
        return row["source_hash"] == now.source_hash
    return Original(row["source_hash"], row["label"], row["caption"]) == now


def _as_is(original: Any) -> Any:  # Torch declares the type as a list of samples.
    return original
