"""Conversion of a store to the files that a trainer reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ldm_ae.core.errors import UserError
from ldm_ae.data import Source
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.latents.conversion.output import converting, write_account
from ldm_ae.latents.conversion.source_images import SourceImages
from ldm_ae.latents.fold import Constants, Fold
from ldm_ae.latents.formats import FORMATS, Format, Options, Samples
from ldm_ae.latents.formats.interface import FLIP
from ldm_ae.latents.store.reader import LatentStore
from ldm_ae.version import __version__


@dataclass(frozen=True, kw_only=True)
class ConvertSummary:
    """The results of `convert_store`."""

    path: Path
    images: int
    warnings: list[str]
    """The data that the trainer will lack or may not support, one line each."""


def convert_store(
    store: LatentStore | str | Path,
    out: str | Path,
    format: str,
    *,
    bucket: str | None = None,
    fold: float | Literal["trainer"] | None = None,
    arch: str | None = None,
    name: str | None = None,
    images: Source | None = None,
    files: Literal["safetensors", "npy"] | None = None,
    no_flips: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ConvertSummary:
    """Write a store's latents for a trainer. One image, or one shard of the result, is in memory at a time.

    Args:
        store: A complete store or its folder.
        out: A new or empty folder, or the name of a single file, depending on the format.
        format: A name in `FORMATS`; `docs/LATENTS.md` describes them.
        bucket: HxW of the pixels; selects the images of this resolution.
        fold: Write latents that have unit variance after the trainer multiplies them by this hard-coded number;
            `trainer` uses the known constants of the trainer's code. `Fold` has the inverse, and the metadata has its
            numbers.
        arch: The diffusion model's architecture, for the formats that name it.
        name: The autoencoder's name, for the formats that name it.
        images: The encoded images, for the formats that also hold images.
        files: The kind of file, for the format that has a choice.
        no_flips: Omit the mirror images, in formats where they are separate sequences.
        progress: Called with the number of images done and their total.

    Raises:
        UserError: The format cannot represent the store's contents or lacks data that the trainer needs, an option does
            not fit, a package is missing, or `out` already exists.
    """
    store = store if isinstance(store, LatentStore) else LatentStore(store)
    target = FORMATS[format](Options(arch=arch, name=name, images=images, files=files, no_flips=no_flips))
    if store.request.indices_alone and target.reads_latents:
        raise UserError(
            f"{store.path} holds indices and no latents, which {target.trainer} reads; encode with --store full"
        )
    positions = _choose(store, target, bucket)
    positions = positions[target.arrange(store.good().take(pa.array(positions)))]
    mapping = _fold(store, target, fold)
    samples = Samples(store, positions, want=target.tensors, fold=mapping, progress=progress)
    encoded = SourceImages(store, images) if images is not None else None
    warnings = [*_check(samples, target, folded=fold is not None), *target.check(samples)]
    with converting(out, suffix=target.suffix) as place:
        target.write(samples, place, encoded)
        metadata = {
            "format": format,
            "images": len(samples),
            "buckets": samples.rows["bucket"].unique().to_pylist(),
            "pixels": PixelSpec.from_json(store.request.transform.get("pixels", "rgb")).words,
            "fold": fold,
            "values": mapping.to_json() if target.reads_latents else None,
            "warnings": warnings,
            "version_of_ldm_ae": __version__,
            "request": store.request.to_json(),
            "classes": store.classes,
        }
        write_account(place, metadata | target.metadata(samples), samples.rows, store.classes)
    return ConvertSummary(path=Path(out), images=len(samples), warnings=warnings)


def _choose(store: LatentStore, target: Format, bucket: str | None) -> NDArray[np.int64]:
    """Return the positions of the images to convert."""
    buckets = sorted(store.good()["bucket"].unique().to_pylist())
    if bucket is not None and bucket not in buckets:
        raise UserError(f"{store.path} has no images of {bucket}; its sizes are {', '.join(buckets)}")
    if bucket is None:
        if len(buckets) > 1 and not target.several_sizes:
            raise UserError(
                f"{target.trainer} reads images of one resolution, {store.path} has {', '.join(buckets)}; "
                "choose one with --bucket"
            )
        return np.arange(len(store), dtype=np.int64)
    return np.flatnonzero(pc.equal(store.good()["bucket"], bucket).to_numpy())


def _fold(store: LatentStore, target: Format, fold: float | Literal["trainer"] | None) -> Fold:
    if fold is None:
        return Fold.of_model(store.spec) if target.scaled else Fold.none(store.spec.channels)
    if not target.reads_latents:
        raise UserError(f"--fold has no effect in the format {target.name}: codes have no scale; remove it")
    if target.normalizes:
        raise UserError(
            f"--fold has no effect: {target.trainer} reads mean and standard deviation from a file; remove it"
        )
    if fold == "trainer":
        if target.constants is None:
            raise UserError(f"the constant of {target.trainer} is in its configuration; give --fold that number")
        return Fold.for_trainer(store.statistics, target.constants)
    if not 0 < fold < float("inf"):
        raise UserError(f"--fold is {fold}; it must be a positive number, or trainer")
    return Fold.for_trainer(store.statistics, Constants(factor=(float(fold),)))


def _check(samples: Samples, target: Format, *, folded: bool) -> Iterator[str]:
    """Yield warnings; raise `UserError` if the files could not hold data that the trainer needs."""
    store, path, trainer = samples.store, samples.store.path, target.trainer
    if any(tensor.startswith("moments") for tensor in target.tensors) and "moments" not in samples.names:
        held = "samples only"
        if store.request.deterministic:
            model = store.request.model_config.get("_class_name")
            held = f"latents only: {model} has no posterior; choose a format that holds latents, such as lightningdit"
        raise UserError(f"{trainer} draws from moments, mean and variance, and {path} holds {held}")
    assert not target.reads_latents or samples.names & {"latents", "moments"}, "checked before"
    holds_flips = any(tensor.endswith(FLIP) for tensor in target.tensors)
    if target.needs_flips and not samples.flips:
        raise UserError(f"{trainer} needs the mirror images' latents, and {path} has none; encode with --flips")
    if samples.flips and not holds_flips:
        yield f"the format {target.name} has no place for mirror images; they are skipped"
    _check_complete(samples, target)
    channels = store.spec.channels
    if target.channels not in (None, channels):
        yield f"{trainer}'s code is written for {target.channels} channels, these latents have {channels}"
    if target.square and len({*samples.size()}) > 1:
        yield f"{trainer}'s code is written for square images, these are {samples.rows['bucket'][0].as_py()}"
    seen = _seen_deviation(samples, target)
    if not folded and seen is not None and not 0.8 < seen < 1.25:
        yield (
            f"{trainer} would scale these latents to {seen:.2g} times the standard deviation that it "
            "expects; convert with --fold trainer"
        )


def _seen_deviation(samples: Samples, target: Format) -> float | None:
    """Return the latents' standard deviation in the trainer, over all channels; None if it is not known."""
    if target.constants is None or len(target.constants.factor) not in (1, samples.store.spec.channels):
        return None
    scale, factor = (np.array(values) for values in (samples.fold.scale, target.constants.factor))
    values = samples.store.statistics.channel_std.numpy() / scale * factor
    return float(np.sqrt(np.mean(values**2)))


def _check_complete(samples: Samples, target: Format) -> None:
    """Raise `UserError` if an image lacks data that the trainer needs for each image."""
    missing = {
        "label": (target.needs_labels, samples.labels < 0, "encode images in class folders"),
        "caption": (
            target.needs_captions,
            pc.is_null(samples.rows["caption"]).to_numpy(),
            "encode images that have one",
        ),
        "original size": (
            target.needs_original_size,
            pc.is_null(samples.rows["width"]).to_numpy(),
            "encode the images",
        ),
    }
    for what, (needed, lacking, remedy) in missing.items():
        if needed and lacking.any():
            key = samples.rows["key"][int(np.flatnonzero(lacking)[0])].as_py()
            raise UserError(
                f"{target.trainer} needs a {what} for each image, {int(lacking.sum())} of {len(samples)} have none "
                f"(the first is {key}); {remedy}"
            )
