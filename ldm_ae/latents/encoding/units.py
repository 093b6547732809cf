"""One unit of work, a range of the source, while it is encoded."""

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
    """Some images of a unit, of one size, on their way from the device."""

    unit: int
    """Its place among those that are encoded."""
    batch: Batch
    tensors: Callable[[], dict[str, Tensor]]
    """Waits for what the model gave, by name: (B, ...) on the CPU."""
    redone: int
    """Batches that overflowed in fp16 and were encoded in float32."""


class Unit:
    """What is known of a unit's images so far.

    Args:
        number: Of the unit.
        indices: Of its images in the source.
        source: The images.
        source_name: Where they come from, for the index.
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
        """Images encoded so far."""
        return len(self._good)

    def add(self, encoded: EncodedBatch, tensors: dict[str, Tensor]) -> None:
        """A batch and what was made of it."""
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
        """A manifest row for each image of a batch."""
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
        """The manifest rows of all images, once all good ones are there; `rejected` has the reasons of the others."""
        return [self._good.get(index) or self._bad_row(index, rejected) for index in self._indices]

    def _bad_row(self, index: int, rejected: dict[str, str]) -> dict[str, Any]:
        key, source_hash = self._source.key(index), self._source.look_at(index).source_hash
        return {
            "key": key, "source": self._source_name, "source_hash": source_hash, "label": -1, "status": "bad",
            "error": printable(rejected[key], 1000),
        }  # fmt: skip

    def write(self, writer: StoreWriter, rows: list[dict[str, Any]]) -> None:
        """Its shards, then its record."""
        shards = {
            bucket: {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            for bucket, parts in self._parts.items()
        }
        writer.add_unit(self.number, shards, rows, fp32_fallbacks=self._redone)
