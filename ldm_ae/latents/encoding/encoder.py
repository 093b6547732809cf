"""Encoding of a data set into a latent store, each image once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ldm_ae.core.background import BackgroundWriter
from ldm_ae.core.compilation import one_graph_a_size
from ldm_ae.core.errors import UserError
from ldm_ae.core.precision import check_precision, inference_numerics
from ldm_ae.core.processes import Processes
from ldm_ae.core.seeding import derive_seed
from ldm_ae.data import Batch, BucketTransform, ImageTransform, RangeLoader, Source, WholeTransform, seeded_noise
from ldm_ae.data.sources.interface import valid_text
from ldm_ae.images.crops import describe_crops
from ldm_ae.images.pixels import images_in_range
from ldm_ae.latents.encoding.config import EncodeConfig
from ldm_ae.latents.encoding.jobs import EncodeSummary, Engine, Job, Progress
from ldm_ae.latents.encoding.transfers import Transfers
from ldm_ae.latents.encoding.units import EncodedBatch, Unit
from ldm_ae.latents.store.additions import join
from ldm_ae.latents.store.annotated import numbering_warnings
from ldm_ae.latents.store.claiming import claiming
from ldm_ae.latents.store.format import DTYPES, StoreRequest, recorded_request
from ldm_ae.latents.store.provenance import inference_copy, scaling_of
from ldm_ae.latents.store.quantize_uint8 import pack
from ldm_ae.latents.store.reader import LatentStore
from ldm_ae.latents.store.reopening import reopen, still_holds
from ldm_ae.latents.store.source_hashes import HashingSource, SourceHashes
from ldm_ae.latents.store.writer import StoreWriter, latents_of
from ldm_ae.models import (
    Autoencoder,
    finite_rows,
    fp32_fallbacks,
    hash_json,
    model_config,
    model_hash,
    require_finite,
)
from ldm_ae.models.stored_rows import SCALE, index_dtype
from ldm_ae.models.wrappers.tiling import blending_of

_FINITE = "finite "
"""Prefix of the names of flags: `_flags` of a tensor before rounding, or of the latents that indices stand for."""


def encode_images(
    model: Autoencoder,
    source: Source,
    path: str | Path,
    *,
    transform: ImageTransform | BucketTransform | WholeTransform,
    config: EncodeConfig | None = None,
    processes: Processes | None = None,
    engine: Engine | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> EncodeSummary:
    """Encode every image of a source into a store.

    After any interruption the same command resumes, also with another spelling of the source or another batch size; if
    the source has new images, they are encoded and appended. A finished shard that has its recorded hash is kept if its
    images are still those that were encoded, and the store becomes byte for byte the one of an uninterrupted run. The
    same holds for a complete store of this command: if nothing has changed, nothing is encoded, but every image is read
    once, unless `check` is off.

    Args:
        model: The model, in float32; a copy of it runs, so that it keeps its weights.
        source: The images.
        path: The store's folder, new, empty, or left by the same command.
        transform: The transform to one size, with a `BucketTransform` to several, or with a `WholeTransform` to each
            image's own, without randomness; mirror images are stored in addition, not drawn at random.
        config: The options. None for the defaults of `EncodeConfig`.
        processes: The place of this process among several; all see the store's folder. Each encodes a contiguous range
            of the files, and all return when the store is complete. None for a single process.
        engine: Encodes in other processes, such as `ldm_ae.latents.encoding.engines.ray.RayEngine`. None for this one.
        progress: Called after every batch, with the image counts of this process alone.
        options: Fields of `EncodeConfig` by name, such as `batch_size=32`, in place of those in `config`.

    Raises:
        RunError: The disk is full, or another process has died.
        UserError: Another process writes there, the folder holds something else, the image size does not fit the
            model, a latent is not finite, no image is valid, or too many are bad.
    """
    if "bad_share" in options:
        warnings.warn("bad_share of encode_images is deprecated; use max_bad_fraction", FutureWarning, stacklevel=2)
        options["max_bad_fraction"] = options.pop("bad_share")
    config = replace(config or EncodeConfig(), **options)
    if transform.is_random:
        raise UserError(
            "a store needs a fixed crop without flip, the transform has a random one; use crop center without flip"
        )
    if config.content == "lean" and not model.has_moments and model.codebook is None:
        raise UserError(
            f"a lean store holds moments or indices, and {type(model.net).__name__} has none; store samples, or full"
        )
    model.pixel_spec.require_match(transform.pixels, "the transform")
    spec = model.latent_spec
    for size in transform.sizes:
        spec.latent_size(*size)
    if config.compiled and isinstance(transform, WholeTransform):
        raise UserError("a compiled encoder needs a limited number of sizes, and each image has its own; compile none, "
                        "or give sizes")  # fmt: skip
    processes = processes or Processes()
    if engine is not None and processes.count > 1:
        raise UserError("an engine starts its own processes; run this command without torchrun or accelerate")
    recorded = recorded_request(path)
    precision = (config.precision == "auto" and recorded.get("precision")) or config.precision
    check_precision(precision)
    if engine is None:
        precision = inference_numerics(precision, processes.device(config.device)).precision
    elif precision == "auto":
        raise UserError("precision auto is measured on this machine; with an engine give fp32, bf16 or fp16")
    config = replace(config, precision="fp32" if precision == "no" else precision)
    tile, overlap = blending_of(model)
    flips = config.flips if config.flips is not None else recorded.get("flips")
    if flips is None:
        flips = source.labels_hold_mirrored()
    request = StoreRequest(
        **config.stored(), flips=flips, source=valid_text(config.source_name), images=len(source), keys_hash="",
        model_hash=model_hash(model), model_config=model_config(model), scaling=scaling_of(spec),
        transform=transform.describe(), transform_hash=hash_json(transform.describe()),
        indices=spec.codebook_size is not None and config.content != "samples",
        deterministic=not model.has_moments and model.codebook is None,
        tile=tile, overlap=overlap,
    )  # fmt: skip
    # These come first, because each may refuse, and nothing must be written in that case.
    if config.classes is not None:
        source = source.with_classes(config.classes, "the list of classes")
    runner = None
    if engine is not None:
        engine.check(str(config.device))
    else:
        runner = inference_copy(
            model, device=processes.device(config.device), precision=config.precision, compiled=config.compiled
        )
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder for the store")
    leads = processes.rank == 0
    with processes.connect() as channel, claiming(folder) if leads else nullcontext():
        if (first := channel.broadcast(config.precision)) != config.precision:
            raise UserError(
                f"the processes chose the precisions {first} and {config.precision}; give one with --precision"
            )
        look_up = None if model.codebook is None else model.codebook.latents
        writer = None
        if leads:
            source, request, keys = join(folder, source, request, keep_classes=config.classes is None)
            writer = StoreWriter(
                path, request, processes=processes.count, look_up=look_up, keys=keys, classes=source.account().classes
            )
        plan = channel.broadcast(writer and writer.plan)
        if writer is None:
            source, request, _ = join(folder, source, request, keep_classes=config.classes is None)
            writer = StoreWriter(path, request, plan=plan, look_up=look_up)
        units = writer.share(processes.rank, processes.count)
        hashing = HashingSource(source)
        source_hashes = SourceHashes(hashing, workers=config.workers, check=config.check)
        already_complete = (
            writer.complete
            and not writer.adds
            and channel.all_agree(not config.check or still_holds(writer, units, source_hashes, progress))
        )
        if already_complete:
            if progress is not None:
                progress(len(source), len(source))
        else:
            if writer.complete:
                if leads:
                    reopen(writer)
                writer.complete = False
                channel.wait_for_all()
            if runner is not None:
                encode_units(writer, runner, hashing, source_hashes, transform, config, units, progress)
            elif engine is not None:
                job = Job(
                    path=writer.path.resolve(), request=writer.request, plan=writer.plan, model=model, source=source,
                    transform=transform, config=config, working_folder=Path.cwd(),
                )  # fmt: skip
                engine(job, units, progress)
            channel.wait_for_all()
            if leads:
                writer.finish(source.account().to_json())
        channel.wait_for_all()
    store = LatentStore(path)
    notes = []
    if config.flips is None and not store.request.flips and not source.labels_hold_mirrored():
        notes.append(
            "no mirror images are stored, because the source's labels do not hold for them; --flips stores them"
        )
    bad = store.bad()
    if len(bad) > config.max_bad_fraction * len(source):
        first = "; ".join(f"{key}: {reason}" for key, reason in islice(bad.items(), 3))
        raise UserError(
            f"{path} is complete, but {len(bad)} of {len(source)} images cannot be used, more than the allowed "
            f"fraction of {config.max_bad_fraction:.1%}\nthe first: {first}"
        )
    return EncodeSummary(
        path=Path(path), images=len(store), bad=bad, statistics=store.statistics, buckets=store.buckets(),
        crops=describe_crops(store.good()), colour_profiles=store.colour_profiles(), already_complete=already_complete,
        precision=store.request.precision, fp32_fallbacks=store.fp32_fallbacks, account=source.account(),
        annotations=store.annotations(), warnings=[*notes, *numbering_warnings(folder, store.classes)],
    )  # fmt: skip


def encode_units(
    writer: StoreWriter,
    model: Autoencoder,
    source: HashingSource,
    source_hashes: SourceHashes,
    transform: ImageTransform | BucketTransform | WholeTransform,
    config: EncodeConfig,
    units: range,
    progress: Progress | None,
) -> None:
    """Encode those of the units that are not done yet. While a thread writes one, the next is encoded."""
    report = progress or _ignore_progress
    total, done = sum(len(writer.indices(unit)) for unit in units), 0
    todo: list[Unit] = []
    for unit in units:
        indices = writer.indices(unit)
        record = writer.finished(unit)
        if record is None or not source_hashes.unchanged(indices, record.rows):
            todo.append(Unit(unit, indices, source, writer.request.source))
        else:
            done += len(indices)
            report(done, total)
    loader = RangeLoader(
        source, transform, ranges=[writer.indices(unit.number) for unit in todo],
        batch_size=writer.request.batch_size, workers=config.workers,
    )  # fmt: skip
    graphs = one_graph_a_size(len(transform.sizes)) if writer.request.compiled else nullcontext()
    with graphs, BackgroundWriter() as background:

        def finish_first() -> None:
            unit = todo.pop(0)
            background.submit(partial(unit.write, writer, unit.finished(loader.rejected)))

        first = 0
        for encoded in _encode_batches(model, loader, writer.request):
            while first < encoded.unit:
                done += len(writer.indices(todo[0].number))
                finish_first()
                first += 1
            todo[0].add(encoded, _stored(encoded.tensors(), encoded.batch, writer.request))
            background.check()
            report(done + len(todo[0]), total)
        while todo:
            finish_first()
    report(total, total)


def _ignore_progress(done: int, total: int) -> None:
    """Do nothing, in place of a progress bar."""
    del done, total


def _encode_batches(model: Autoencoder, loader: RangeLoader, request: StoreRequest) -> Iterator[EncodedBatch]:
    """Yield the encoded batches of the loader, each after the model has received the next one."""
    transfers = Transfers(model.device)
    before: EncodedBatch | None = None
    for unit, batch in loader:
        redone = fp32_fallbacks(model)
        tensors = transfers.download(_encode_batch(model, batch, request, transfers))
        encoded = EncodedBatch(unit=unit, batch=batch, tensors=tensors, redone=fp32_fallbacks(model) - redone)
        if before is not None:
            yield before
        before = encoded
    if before is not None:
        yield before


@torch.inference_mode()
def _encode_batch(model: Autoencoder, batch: Batch, request: StoreRequest, transfers: Transfers) -> dict[str, Tensor]:
    """Return latents and moments of one batch, on the device, which may still be computing them."""
    pixel_values = transfers.upload(batch.pixel_values)
    missing = request.batch_size - len(batch) if request.compiled else 0
    if missing:
        pixel_values = functional.pad(pixel_values, (0, 0, 0, 0, 0, 0, 0, missing))
    dtype = torch.float32 if request.dtype == "uint8" else DTYPES[request.dtype]
    computed: dict[str, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    flags: dict[str, Tensor] = {}
    views = {"": pixel_values, "_flip": pixel_values.flip(3)} if request.flips else {"": pixel_values}
    for suffix, view in views.items():
        with images_in_range():
            posterior = model.encode(view)
        if request.content != "lean":
            values = posterior.mode()
            if request.latents == "sample":
                seeds = torch.tensor([derive_seed(request.seed, key, suffix) for key in batch.keys] + [0] * missing)
                noise = transfers.upload(seeded_noise(seeds, tuple(values.shape[1:])))
                values = posterior.sample(noise=noise)
            computed[f"latents{suffix}"] = values
        if posterior.indices is not None and request.indices:
            # An index is always finite, but the latents that it stands for may not be.
            flags[f"{_FINITE}latents{suffix}"] = _flags(posterior.mode())
            tensors[f"indices{suffix}"] = posterior.indices.to(index_dtype(request.scaling["codebook_size"]))
        if posterior.moments is not None and request.content != "samples":
            computed[f"moments{suffix}"] = posterior.moments
    flags |= {f"{_FINITE}{name}": _flags(values) for name, values in computed.items()}
    tensors |= {name: values.to(dtype) for name, values in computed.items()}
    return {name: tensor[: len(batch)] for name, tensor in (tensors | flags).items()}


def _flags(values: Tensor) -> Tensor:
    """Return (B, 1) flags of values (B, ...) on the device: NaN for an image whose values are not finite, else 0."""
    return torch.where(finite_rows(values), 0.0, torch.nan)[:, None]


def _stored(tensors: dict[str, Tensor], batch: Batch, request: StoreRequest) -> dict[str, Tensor]:
    """Return the tensors that are stored; raise `UserError` that names an image if they are not finite."""
    tensors = dict(tensors)
    for name in [name for name in tensors if name.startswith(_FINITE)]:
        require_finite(tensors.pop(name), batch.keys, request.precision, what=name.removeprefix(_FINITE))
    if request.dtype == "uint8":
        tensors = pack(tensors, lambda floats: latents_of(floats, batch.keys, request))
    for name, tensor in tensors.items():
        finite = finite_rows(tensor)
        if not finite.all():
            key = batch.keys[int((~finite).nonzero()[0])]
            raise UserError(
                f"{name.removesuffix(SCALE)} of {key} are too large to be stored as {request.dtype}; store bf16 or fp32"
            )
    return tensors
