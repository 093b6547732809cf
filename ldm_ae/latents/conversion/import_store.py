"""Import of latents in a trainer's files into a store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.core.seeding import derive_seed, seeded_noise
from ldm_ae.data.texts import check_names
from ldm_ae.latents.conversion.output import read_account
from ldm_ae.latents.fold import Fold
from ldm_ae.latents.formats import FORMATS, Foreign
from ldm_ae.latents.formats.interface import FLIP
from ldm_ae.latents.store.additions import hash_keys
from ldm_ae.latents.store.claiming import claiming
from ldm_ae.latents.store.format import DTYPES, SCHEMA, StoreRequest, complete_columns, read_request
from ldm_ae.latents.store.provenance import read_scaling, scaling_of
from ldm_ae.latents.store.writer import StoreWriter
from ldm_ae.models import Autoencoder, GaussianPosterior, hash_json, model_config, model_hash

_SHARD = 1024
_NO_INDICES = "these files do not hold the indices of the codes, only the latents that the codes stand for"


@dataclass(frozen=True, kw_only=True)
class ImportSummary:
    """The results of `import_latents`."""

    path: Path
    format: str
    """The detected format."""
    images: int
    warnings: list[str]
    """The data that the files lack or that cannot be restored, one line each."""


def import_latents(
    source: str | Path,
    store: str | Path,
    *,
    model: Autoencoder | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ImportSummary:
    """Read LightningDiT's or EDM2's files into a new store. One shard is in memory at a time.

    The output of `convert_store` is restored with its keys, captions, sizes and request, unfolded, but without indices.
    For other files the numbers are the keys. If there are only moments, the latents are drawn from them as the encoder
    draws.

    Args:
        source: A folder of LightningDiT's safetensors, or EDM2's ZIP file, packed or not.
        store: The store's folder: new or empty.
        model: The autoencoder that made the latents; needed unless `convert_store` wrote the files.
        seed: Seed of the draws, unless the files record it.
        progress: Called with the number of images done and their total.

    Raises:
        UserError: The files have no format that can be read back, or are damaged; the model is missing or does not fit;
            a value is not finite; or the store's folder holds something else.
    """
    source = Path(source)
    name, foreign = _open(source)
    account = _read_account(foreign)
    if account is not None:
        request, rows, fold, classes = account
        if len(rows) != foreign.count:
            raise UserError(f"{source} holds {foreign.count} images, but its metadata names {len(rows)}")
        warnings = [_NO_INDICES] if request.indices else []
    else:
        request, rows, fold, warnings = _unknown(foreign, model, seed)
        classes = []
    spec = read_scaling(request.scaling)
    if model is not None and model_hash(model) != request.model_hash:
        raise UserError(f"the metadata of {source} names another model; remove --model")
    if spec.channels != foreign.channels:
        raise UserError(f"the latents in {source} have {foreign.channels} channels, the model has {spec.channels}")
    latents_flip = f"latents{FLIP}" in foreign.names or f"moments{FLIP}" in foreign.names
    every_key = (key for chunk in rows["key"].chunks for key in chunk.to_pylist())
    request = replace(
        request, images=foreign.count, keys_hash=hash_keys(every_key), flips=latents_flip, dtype=foreign.dtype,
        content="full", indices=False, latents=request.latents if "latents" in foreign.names else "sample",
        shard_size=_SHARD,
    )  # fmt: skip
    bucket = f"{foreign.latent_size[0] * spec.downsample_factor}x{foreign.latent_size[1] * spec.downsample_factor}"
    with claiming(Path(store)):
        writer = StoreWriter(store, request, classes=classes)
        if not writer.complete:
            done = 0
            for unit, chunk in enumerate(foreign.chunks(_SHARD)):
                part = rows.slice(done, len(chunk["labels"])).to_pylist()
                labels = chunk.pop("labels")
                keys = [row["key"] for row in part]
                for row, label in zip(part, labels.tolist(), strict=True):
                    row |= {"label": label, "bucket": bucket}
                tensors = _tensors(chunk, fold, keys, request)
                for tensor_name, tensor in tensors.items():
                    if not tensor.isfinite().all():
                        raise UserError(
                            f"{source}: {tensor_name} of images {done} to {done + len(keys) - 1} is not finite"
                        )
                writer.add_unit(unit, {bucket: tensors | _bookkeeping(part, labels, done)}, part)
                done += len(keys)
                if progress is not None:
                    progress(done, foreign.count)
            writer.finish()
    return ImportSummary(path=Path(store), format=name, images=foreign.count, warnings=warnings)


def _open(source: Path) -> tuple[str, Foreign]:
    if not source.exists():
        raise UserError(f"no such file or folder: {source}")
    if (source / "store.json").is_file():
        raise UserError(f"{source} is a latent store already")
    found = [(name, opened) for name, kind in FORMATS.items() if (opened := kind.open_foreign(source)) is not None]
    if len(found) != 1:
        raise UserError(f"{source} is neither a folder of LightningDiT's safetensors nor EDM2's ZIP file of latents")
    return found[0]


def _read_account(foreign: Foreign) -> tuple[StoreRequest, pa.Table, Fold, list[str]] | None:
    """Return the files that `convert_store` wrote beside the latents; None if it did not write them."""
    metadata, index = foreign.described()
    if metadata is None or index is None:
        return None
    content, rows = read_account(metadata, index, foreign.path)
    try:
        request, fold = read_request(content["request"]), Fold.from_json(content["values"])
        classes = check_names(content["classes"]) if content.get("classes") else []
        rows = complete_columns(rows)
        if rows["status"].unique().to_pylist() != ["ok"]:
            raise ValueError("the index has rows of bad images")
        read_scaling(request.scaling)  # as it is read below
        if len(fold.scale) != foreign.channels:
            raise ValueError(f"a scale for {len(fold.scale)} channels, not {foreign.channels}")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{foreign.path}: the metadata that ldm_ae wrote is damaged: {error}") from error
    return request, rows, fold, classes


def _unknown(foreign: Foreign, model: Autoencoder | None, seed: int) -> tuple[StoreRequest, pa.Table, Fold, list[str]]:
    """Return the default request, rows, fold and warnings for files that `convert_store` did not write."""
    if model is None:
        raise UserError(f"{foreign.path} does not record which model made it; give it with --model")
    warnings = ["the files do not name the images: their numbers become the keys"]
    if foreign.has_own_pixels:
        warnings.append(
            "EDM2's own encoder takes pixels in [0, 1]: if it made these latents, they decode to [0, 1] too"
        )
    request = StoreRequest(
        source=str(foreign.path), images=foreign.count, keys_hash="", model_hash=model_hash(model),
        model_config=model_config(model), scaling=scaling_of(model.latent_spec), transform={},
        transform_hash=hash_json({}), dtype=foreign.dtype, precision=foreign.dtype, latents="sample", flips=False,
        seed=seed, batch_size=1, shard_size=_SHARD,
        deterministic=not model.has_moments and model.codebook is None and "moments" not in foreign.names,
    )  # fmt: skip
    source = str(foreign.path)
    tables = [
        pa.Table.from_pylist(
            [{"key": f"{number:08d}", "source": source, "label": -1, "status": "ok"} for number in numbers],
            schema=SCHEMA,
        )
        for numbers in (range(start, min(start + _SHARD, foreign.count)) for start in range(0, foreign.count, _SHARD))
    ]
    return request, pa.concat_tables(tables), Fold.none(foreign.channels), warnings


def _tensors(chunk: dict[str, Tensor], fold: Fold, keys: list[str], request: StoreRequest) -> dict[str, Tensor]:
    """Return a shard's latents and moments, unfolded, in the stored dtype."""
    dtype = DTYPES[request.dtype]
    tensors: dict[str, Tensor] = {}
    for name, values in chunk.items():
        unfolded = fold.unfold(values) if name.startswith("latents") else fold.unfold_moments(values)
        tensors[name] = unfolded.to(dtype)
    for view in ("", FLIP) if request.flips else ("",):
        if f"latents{view}" not in tensors:
            posterior = GaussianPosterior(tensors[f"moments{view}"])
            seeds = torch.tensor([derive_seed(request.seed, key, view) for key in keys])
            drawn = posterior.sample(noise=seeded_noise(seeds, tuple(posterior.mean.shape[1:])))
            tensors[f"latents{view}"] = drawn.to(dtype)
    return tensors


def _bookkeeping(rows: list[dict[str, Any]], labels: Tensor, start: int) -> dict[str, Tensor]:
    """Return the small tensors of a shard; zeros where the files have no values."""
    sizes = [[row["height"] or 0, row["width"] or 0] for row in rows]
    return {
        "labels": labels,
        "index": torch.arange(start, start + len(rows)),
        "original_size": torch.tensor(sizes, dtype=torch.int64),
        "crop_ltrb": torch.tensor([row["crop"] or [0, 0, 0, 0] for row in rows], dtype=torch.int64),
    }
