"""LightningDiT (hustvl/LightningDiT, `ImgLatentDataset`).

    OUT/latents_rank{RR:02d}_shard{SSS:03d}.safetensors    and no other safetensors file; read in the order of the names
        latents, latents_flip   (N, C, h, w) unscaled, any float dtype; the reader takes one or the other at random
        labels                  (N,) int64
    OUT/latents_stats.pt        {'mean', 'std'}, each (1, C, 1, 1) float32, with which the reader normalizes

Further tensors in a shard are ignored. A resolution's folder of a latent store is such a data set, unless it is in
uint8: its shards and its `bucket_statistics` have these names and keys. Converting one links its files (or copies them,
if the file system cannot link), so that it costs no space.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.core.precision import DTYPES
from ldm_ae.io.tensor_files import DTYPE_NAMES
from ldm_ae.latents.conversion.output import INDEX_FILE, METADATA
from ldm_ae.latents.formats.interface import FLIP, EncodedImages, Foreign, Format, Samples
from ldm_ae.latents.store.files import write_bytes, write_safetensors
from ldm_ae.latents.store.format import BUCKET_STATISTICS
from ldm_ae.latents.store.statistics_files import bucket_statistics

_TENSORS = ("latents", "latents_flip")
_STATISTICS = "latents_stats.pt"
_SHARD = 1024
_DTYPES = {DTYPE_NAMES[dtype]: name for name, dtype in DTYPES.items()}


class LightningDiT(Format):
    """A folder of safetensors shards with statistics beside them."""

    name = "lightningdit"
    trainer = "LightningDiT"
    tensors = _TENSORS
    needs_flips = True
    needs_labels = True
    square = True
    normalizes = True

    def arrange(self, rows: pa.Table) -> NDArray[np.int64]:
        """Order the rows by shard and row, as the files are read."""
        order = pa.table(
            {"shard": rows["shard"], "row": rows["row"], "at": pa.array(np.arange(len(rows), dtype=np.int64))}
        )
        return order.sort_by([("shard", "ascending"), ("row", "ascending")])["at"].to_numpy()

    def write(self, samples: Samples, out: Path, images: EncodedImages | None) -> None:  # noqa: ARG002
        """See `Format.write`."""
        if samples.names.issuperset(_TENSORS) and samples.store.request.has_bucket_statistics:
            [bucket] = samples.rows["bucket"].unique().to_pylist()
            folder = samples.store.path / bucket
            for name in samples.rows["shard"].unique().to_pylist():
                _link(folder / name, out / name)
            _link(folder / BUCKET_STATISTICS, out / _STATISTICS)
            return
        rows: list[dict[str, Tensor]] = []
        shard = 0
        for sample in samples:
            rows.append(sample.tensors | {"labels": torch.tensor(sample.label)})
            if len(rows) == _SHARD or sample.number == len(samples) - 1:
                # Five digits make the order of the names that of the numbers.
                path = out / f"latents_rank00_shard{shard:05d}.safetensors"
                write_safetensors(path, {name: torch.stack([row[name] for row in rows]) for name in rows[0]}, {})
                rows, shard = [], shard + 1
        write_bytes(out / _STATISTICS, bucket_statistics(samples.store.statistics))

    @classmethod
    def open_foreign(cls, path: Path) -> Foreign | None:
        """See `Format.open_foreign`."""
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else []
        return _LightningDiTFolder(path, files) if files else None


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # Another device, or a file system without links.
        shutil.copyfile(source, target)


class _LightningDiTFolder(Foreign):
    """External latents in LightningDiT's files."""

    has_own_pixels = False

    def __init__(self, path: Path, files: list[Path]):
        self.path = path
        self._files = files
        self.count = 0
        for file in files:
            names, shape, dtype = self._look_at(file)
            if file == files[0]:
                self.names, self.dtype = names, dtype
                self.channels, *size = shape[1:]
                self.latent_size = (size[0], size[1])
            elif (names, shape[1:], dtype) != (self.names, [self.channels, *self.latent_size], self.dtype):
                raise UserError(f"{file} holds other tensors, shapes or dtypes than {files[0].name}")
            self.count += shape[0]
        if self.count == 0:
            raise UserError(f"the shards in {path} hold no latents")

    @staticmethod
    def _look_at(file: Path) -> tuple[frozenset[str], list[int], str]:
        try:
            with safe_open(file, framework="pt") as shard:
                found = set(shard.keys())
                if not {"latents", "labels"} <= found:
                    raise UserError(f"{file} is not a shard of LightningDiT's: it lacks latents or labels")
                views = ("", FLIP) if f"latents{FLIP}" in found else ("",)
                kinds = ["latents"] + (["moments"] if all(f"moments{view}" in found for view in views) else [])
                names = frozenset(f"{kind}{view}" for kind in kinds for view in views)
                shapes = {name: shard.get_slice(name).get_shape() for name in sorted(names)}
                dtypes = {shard.get_slice(name).get_dtype() for name in names}
                labels = shard.get_slice("labels")
                shape = shapes["latents"]
                if len(shape) != 4 or len(dtypes) != 1 or dtypes - _DTYPES.keys():
                    raise UserError(
                        f"{file}: latents are {shape} of {sorted(dtypes)}, not (N, C, h, w) of one float dtype"
                    )
                rows, channels, *size = shape
                expected = {name: [rows, channels * (2 if name.startswith("moments") else 1), *size] for name in shapes}
                if shapes != expected or labels.get_shape() != [rows] or labels.get_dtype() != "I64":
                    raise UserError(f"{file}: its tensors do not have the same rows and sizes")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} cannot be read: {str(error)[:120]}") from error
        return names, shape, _DTYPES[dtypes.pop()]

    def described(self) -> tuple[bytes | None, bytes | None]:
        """See `Foreign.described`."""
        files = (self.path / METADATA, self.path / INDEX_FILE)
        metadata, index = (file.read_bytes() if file.is_file() else None for file in files)
        return metadata, index

    def chunks(self, size: int) -> Iterator[dict[str, Tensor]]:
        """See `Foreign.chunks`."""
        for file in self._files:
            with safe_open(file, framework="pt") as shard:
                slices = {name: shard.get_slice(name) for name in (*sorted(self.names), "labels")}
                rows = slices["labels"].get_shape()[0]
                for start in range(0, rows, size):
                    yield {name: part[start : min(start + size, rows)] for name, part in slices.items()}
