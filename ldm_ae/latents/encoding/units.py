"""One unit of work, a range of the source, during its encoding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm_ae.core.errors import printable
from ldm_ae.data import Batch
from ldm_ae.latents.store.source_hashes import HashingSource
from ldm_ae.latents.store.writer import StoreWriter


@dataclass(frozen=True, kw_only=True)
class EncodedBatch:
    """Some images of a unit, of one size, in transfer from the device."""

    unit: int
    """The unit's position among the encoded units."""
    batch: Batch
    tensors: Callable[[], dict[str, Tensor]]
    """A function that waits for the model's outputs and returns them by name: (B, ...) on the CPU."""
    redone: int
    """Number of batches that overflowed in fp16 and were encoded in float32."""


class Unit:
    """The state of a unit's images during encoding.

    Args:
        number: The number of the unit.
        indices: The indices of its images in the source.
        source: The images.
        source_name: The origin of the images, for the index.
    """

    def __init__(self, number: int, indices: range, source: HashingSource, source_name: str):
        self.number = number
        self._indices = indices
        self._source = source
        self._source_name = source_name
        self._parts: dict[str, list[dict[str, Tensor]]] = {}
        self._good: dict[int, dict[str, Any]] = {}
        self._redone = 0

    def __len__(self) -> int:
        """Return the number of images encoded so far."""
        return len(self._good)

    def add(self, encoded: EncodedBatch, tensors: dict[str, Tensor]) -> None:
        """Add an encoded batch and its tensors."""
        batch = encoded.batch
        height, width = batch.pixel_values.shape[-2:]
        bucket = f"{height}x{width}"
        bookkeeping = {
            "labels": batch.labels,
            "index": batch.indices,
            "original_size": batch.original_sizes,
            "crop_ltrb": batch.crops_ltrb,
        }
        self._parts.setdefault(bucket, []).append(tensors | bookkeeping)
        self._good |= zip(batch.indices.tolist(), self._rows(batch, bucket), strict=True)
        self._redone += encoded.redone

    def _rows(self, batch: Batch, bucket: str) -> list[dict[str, Any]]:
        """Return a manifest row for each image of a batch."""
        sizes, crops, labels = batch.original_sizes.tolist(), batch.crops_ltrb.tolist(), batch.labels.tolist()
        orientations = batch.orientations.tolist()
        rows = []
        for i, key in enumerate(batch.keys):
            source_hash, caption = HashingSource.split(batch.captions[i])
            rows.append(
                {
                    "key": key,
                    "source": self._source_name,
                    "source_hash": source_hash,
                    "height": sizes[i][0],
                    "width": sizes[i][1],
                    "crop": crops[i],
                    "bucket": bucket,
                    "label": labels[i],
                    "caption": caption,
                    "status": "ok",
                    "error": "; ".join(batch.notes[i]) or None,
                    "orientation": orientations[i],
                    "colour_profile": batch.colour_profiles[i],
                }
            )
        return rows

    def finished(self, rejected: dict[str, str]) -> list[dict[str, Any]]:
        """Return the manifest rows of all images, once all valid ones are there; `rejected` has the others' reasons."""
        return [self._good.get(index) or self._bad_row(index, rejected) for index in self._indices]

    def _bad_row(self, index: int, rejected: dict[str, str]) -> dict[str, Any]:
        key, source_hash = self._source.key(index), self._source.look_at(index).source_hash
        return {
            "key": key, "source": self._source_name, "source_hash": source_hash, "label": -1, "status": "bad",
            "error": printable(rejected[key], 1000),
        }  # fmt: skip

    def write(self, writer: StoreWriter, rows: list[dict[str, Any]]) -> None:
        """Write the unit's shards, then its record."""
        shards = {
            bucket: {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            for bucket, parts in self._parts.items()
        }
        writer.add_unit(self.number, shards, rows, fp32_fallbacks=self._redone)
