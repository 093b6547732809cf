"""MosaicML Streaming's MDS files with micro_diffusion's columns (SonyResearch/micro_diffusion).

    OUT/index.json          {"version": 2, "shards": [...]}
    OUT/shard.00000.mds, ...
        caption             str
        latents_{H}         bytes of (C, h, w) float16 scaled latents; the reader supports latents_256 and latents_512

micro_diffusion's third column, `caption_latents`, holds the text encoder's output, which a store does not have: add it
before training.

The package mosaicml-streaming requires older versions of numpy and transformers than this one, so this module writes
the files. The format, version 2 (`streaming/base/format/mds`, version 0.13), has all numbers uint32, little-endian:

    shard:   number of samples n, n + 1 offsets of the samples from the file's start, the configuration as JSON, samples
    sample:  the size of each column without a fixed one, in the order of the columns' names; then their bytes
    index:   for each shard its configuration, number of samples, and name and size of its file
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ldm_ae.core.errors import UserError
from ldm_ae.latents.fold import Constants
from ldm_ae.latents.formats.interface import EncodedImages, Format, Samples

_SIZE_LIMIT = 1 << 26
_READABLE = {256: 32, 512: 64}


class MDS(Format):
    """Shards of captions and latents."""

    name = "mds"
    trainer = "micro_diffusion"
    tensors = ("latents",)
    needs_captions = True
    scaled = True
    constants = Constants(factor=(1.0,))

    def check(self, samples: Samples) -> Iterator[str]:
        """See `Format.check`."""
        height, width = samples.size()
        if height != width:
            raise UserError(
                f"the column of {height}x{width} images would be that of {height}x{height}; mds holds squares only"
            )
        latent, _ = samples.store.spec.latent_size(height, width)
        if _READABLE.get(height) != latent:
            yield (
                f"micro_diffusion reads latents of 32x32 from images of 256 and of 64x64 from 512, these are "
                f"{latent}x{latent} from {height}"
            )
        yield "micro_diffusion also reads caption_latents, its text encoder's output, which a store does not hold"

    def write(self, samples: Samples, out: Path, images: EncodedImages | None) -> None:  # noqa: ARG002
        """See `Format.write`."""
        column = f"latents_{samples.size()[0]}"
        writer = _Writer(out, {"caption": "str", column: "bytes"})
        for sample in samples:
            assert sample.caption is not None, "checked before"
            values = sample.tensors["latents"].half()
            if not values.isfinite().all():
                raise UserError(f"the scaled latents of {sample.key} do not fit into float16, which mds holds")
            writer.add({"caption": sample.caption.encode(), column: values.numpy().tobytes()})
        writer.finish()


class _Writer:
    """The files of one data set."""

    def __init__(self, out: Path, columns: dict[str, str]):
        self._out = out
        self._names = sorted(columns)
        self._configuration: dict[str, Any] = {
            "version": 2,
            "format": "mds",
            "compression": None,
            "hashes": [],
            "size_limit": _SIZE_LIMIT,
            "column_names": self._names,
            "column_encodings": [columns[name] for name in self._names],
            "column_sizes": [None] * len(columns),
        }
        self._header = json.dumps(self._configuration, sort_keys=True).encode()
        self._shards: list[dict[str, Any]] = []
        self._samples: list[bytes] = []
        self._size = 0

    def add(self, sample: dict[str, bytes]) -> None:
        """Add one sample; this may write a shard."""
        values = [sample[name] for name in self._names]
        encoded = np.array([len(value) for value in values], "<u4").tobytes() + b"".join(values)
        if self._samples and self._size + len(encoded) + 4 > _SIZE_LIMIT:
            self._flush()
        self._samples.append(encoded)
        self._size += len(encoded) + 4

    def _flush(self) -> None:
        start = 4 + 4 * (len(self._samples) + 1) + len(self._header)
        offsets = start + np.cumsum([0, *(len(sample) for sample in self._samples)])
        name = f"shard.{len(self._shards):05d}.mds"
        with (self._out / name).open("wb") as file:
            file.write(np.array([len(self._samples), *offsets], "<u4").tobytes())
            file.write(self._header)
            file.writelines(self._samples)
            size = file.tell()
        self._shards.append(
            self._configuration
            | {
                "samples": len(self._samples),
                "raw_data": {"basename": name, "bytes": size, "hashes": {}},
                "zip_data": None,
            }
        )
        self._samples, self._size = [], 0

    def finish(self) -> None:
        """Write the last shard and the index."""
        if self._samples:
            self._flush()
        (self._out / "index.json").write_text(json.dumps({"version": 2, "shards": self._shards}, sort_keys=True))
