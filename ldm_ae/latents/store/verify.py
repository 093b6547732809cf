"""Verification of a store, and inspection of its contents."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ldm_ae.core.errors import UserError, printable, reason
from ldm_ae.images.crops import describe_crops
from ldm_ae.io.tensor_files import DTYPE_NAMES
from ldm_ae.latents.store.files import look_at
from ldm_ae.latents.store.format import (
    BUCKET_STATISTICS,
    CLASSES,
    DESCRIPTION,
    DTYPES,
    INDEX,
    STATISTICS,
    read_description,
)
from ldm_ae.latents.store.reader import LatentStore
from ldm_ae.models import LatentSpec
from ldm_ae.models.stored_rows import BOOKKEEPING, row_of_tensor, stored_names


def verify_store(path: str | Path, *, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Return the problems of a store, one line each; an empty list if it is valid. Every byte of it is read.

    Each file exists with its size and sha256, and there are no other shards; each shard has the header, tensors, shapes
    and dtypes of the request, finite latents, and the rows that the index names; the statistics have the right counts.
    An unfinished store is not valid.

    Args:
        path: The store's folder.
        progress: Called after every check of a file with their number and total.
    """
    try:
        store = LatentStore(path)
    except UserError as error:
        return [str(error)]
    checks = _Checks(len(store.files) + len(_shards(store)), progress)
    problems = _check_files(store, checks)
    # A file with a wrong hash may contain anything; its further problems give no information.
    complete = {
        name: rows for name, rows in _shards(store).items() if not any(problem.startswith(name) for problem in problems)
    }
    # Latents that were imported from external files have no moments in any shard, nor have those of a model without
    # a posterior.
    moments = not store.request.deterministic and any(_holds_moments(store.path / name) for name in complete)
    for name, rows in complete.items():
        problems += [f"{name} {problem}" for problem in _check_shard(store, name, rows, moments=moments)]
        checks.count()
    return problems or _check_count(store)


@dataclass
class _Checks:
    total: int
    progress: Callable[[int, int], None] | None
    done: int = 0

    def count(self) -> None:
        """Count one more finished check."""
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)


def inspect_store(
    path: str | Path, *, verify: bool = True, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Return a description of a store as JSON values; `problems` is empty if it is valid.

    Args:
        path: The store's folder, finished or not.
        verify: Read every byte, as `verify_store`; otherwise `problems` holds only those that opening reveals.
        progress: As in `verify_store`.

    Raises:
        UserError: The path is not a latent store at all.
    """
    path = Path(path)
    description = read_description(path)
    summary: dict[str, Any] = {
        "kind": "latent store",
        "path": str(path),
        "complete": description.get("files") is not None,
    }
    request = description["request"]
    shown = (
        "source",
        "content",
        "dtype",
        "precision",
        "latents",
        "indices",
        "flips",
        "seed",
        "transform",
        "model_hash",
        "scaling",
    )
    summary |= {name: request.get(name) for name in shown}
    if request.get("deterministic"):
        summary["moments"] = "none: the model has no posterior, and `latents` are its encoder's output"
    if request.get("tile"):
        summary |= {name: request.get(name) for name in ("tile", "overlap")}
    try:
        store = LatentStore(path)
    except UserError as error:
        return summary | {"problems": [str(error)]}
    statistics, annotations, crops = store.statistics, store.annotations(), describe_crops(store.good())
    buckets = {
        bucket: {"images": images, "shards": sum(name.startswith(f"{bucket}/") for name in _shards(store))}
        for bucket, images in store.buckets().items()
    }
    return summary | {
        "redone_batches": store.fp32_fallbacks,
        "images": len(store),
        "bad_images": store.bad(),
        "captions": annotations.captions,
        "labels": annotations.labels,
        "captions_or_labels_not_usable": annotations.unusable,
        "classes": store.classes,
        "account": store.account(),
        "buckets": buckets,
        "cropped": {"mean_share": crops.mean_fraction, "enlarged": crops.enlarged},
        "colour_profiles": store.colour_profiles(),
        "bytes": sum(file["size"] for file in store.files.values()),
        "statistics": {
            "channel_mean": statistics.channel_mean.tolist(),
            "channel_std": statistics.channel_std.tolist(),
            "pooled_std": statistics.pooled_std,
        }
        | ({} if statistics.relative_error is None else {"relative_error": statistics.relative_error.tolist()}),
        "problems": verify_store(path, progress=progress) if verify else [],
    }


def _shards(store: LatentStore) -> dict[str, pa.Table]:
    """Return the valid index rows of each shard by its path in the store."""
    rows = store.good().append_column("position", pa.array(range(len(store)), pa.int64()))
    names = pc.binary_join_element_wise(rows["bucket"], rows["shard"], "/")
    return {name: rows.filter(pc.equal(names, name)) for name in names.unique().to_pylist()}


def _check_files(store: LatentStore, checks: _Checks) -> list[str]:
    problems = []
    shards = _shards(store)
    expected = {INDEX, STATISTICS, *shards, *(store.files.keys() & {CLASSES})}
    if store.request.has_bucket_statistics:
        expected |= {f"{name.partition('/')[0]}/{BUCKET_STATISTICS}" for name in shards}
    if different := expected ^ store.files.keys():
        return [f"{DESCRIPTION} and {INDEX} do not name the same files: {printable(sorted(different)[0])}"]
    for name, written in store.files.items():
        file = store.path / name
        if not file.is_file():
            problems.append(f"{name} is missing")
        elif look_at(file)._asdict() != written:
            problems.append(f"{name} is damaged: its content has changed")
        checks.count()
    found = {file.relative_to(store.path).as_posix() for file in store.path.glob("*/*.safetensors")}
    return problems + [f"{name} does not belong to the store" for name in sorted(found - expected)]


def _expected_tensors(store: LatentStore, name: str, rows: int, *, moments: bool) -> dict[str, tuple[list[int], str]]:
    """Return shape and dtype, by safetensors' name, of each tensor of a shard."""
    kinds = ["latents"] if store.request.content != "lean" else []
    kinds += ["moments"] if moments else []
    kinds += ["indices"] if store.request.indices else []
    dtype = DTYPES[store.request.dtype]
    names = stored_names(kinds, dtype, flips=store.request.flips)
    found = {key: row_of_tensor(key, name.partition("/")[0], store.spec, dtype) for key in names}
    return {key: ([rows, *shape], DTYPE_NAMES[dtype]) for key, (shape, dtype) in found.items()}


def _check_count(store: LatentStore) -> list[str]:
    values = sum(images * math.prod(_latent_size(store, bucket)) for bucket, images in store.buckets().items())
    if store.statistics.count == values:
        return []
    return [f"{STATISTICS} counts {store.statistics.count} values per channel, the images have {values}"]


def _latent_size(store: LatentStore, bucket: str) -> tuple[int, int]:
    height, width = (int(side) for side in bucket.split("x"))
    return store.spec.latent_size(height, width)


def _holds_moments(file: Path) -> bool:
    try:
        with safe_open(file, framework="pt") as shard:
            return any(name.startswith("moments") for name in shard.keys())  # noqa: SIM118
    except (SafetensorError, OSError):
        return False  # `_check_shard` reports the problem.


def _check_values(key: str, values: Tensor, spec: LatentSpec) -> str | None:
    """Return the problem of a tensor of the right shape and dtype, if there is one."""
    if key.startswith("indices"):
        wide = values.to(torch.int64)
        if int(wide.min()) >= 0 and spec.codebook_size is not None and int(wide.max()) < spec.codebook_size:
            return None
        return f"has {key} outside [0, {spec.codebook_size})"
    return None if values.isfinite().all() else f"has values in {key} that are not finite"


def _check_shard(store: LatentStore, name: str, rows: pa.Table, *, moments: bool) -> list[str]:
    """Check header, shapes, dtypes, finite values, and the index."""
    try:
        with safe_open(store.path / name, framework="pt") as file:
            header = file.metadata() or {}
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
            dtypes = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
            if header != store.request.header(len(rows)):
                return ["has a header that does not match the store or its number of rows"]
            expected = _expected_tensors(store, name, len(rows), moments=moments)
            if shapes != {key: shape for key, (shape, _) in expected.items()}:
                return [f"has other tensors or shapes than the store's: {printable(shapes)}"]
            if dtypes != {key: dtype for key, (_, dtype) in expected.items()}:
                return [f"has other dtypes than the store's: {printable(dtypes)}"]
            problems = [found for key in sorted(expected.keys() - BOOKKEEPING.keys())
                        if (found := _check_values(key, file.get_tensor(key), store.spec))]  # fmt: skip
            order = rows.sort_by("row")
            row_numbers = order["row"].to_pylist()
            keys = file.get_tensor("index").tolist()
            labels = file.get_tensor("labels").tolist()
    except (SafetensorError, OSError, UserError) as error:
        return [f"cannot be read: {reason(error)}"]
    of_index = [store.index_rows[position] for position in order["position"].to_pylist()]
    if row_numbers != list(range(len(rows))) or keys != of_index or labels != order["label"].to_pylist():
        problems.append(f"does not hold the rows that {INDEX} lists")
    return problems
