"""A data set through an encoder into a latent store, once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ldm_ae.data import Batch, EvaluationLoader, ImageTransform, Source, seeded_noise
from ldm_ae.errors import UserError
from ldm_ae.files import make_folder
from ldm_ae.latents.eight_bits import SCALE, pack
from ldm_ae.latents.originals import HashingSource, Originals
from ldm_ae.latents.processes import Processes
from ldm_ae.latents.provenance import derive_seed, inference_copy, scaling_of
from ldm_ae.latents.reader import LatentStore
from ldm_ae.latents.reopening import reopen, still_holds
from ldm_ae.latents.store import DTYPES, StoreRequest, index_dtype
from ldm_ae.latents.writer import StoreWriter, latents_of
from ldm_ae.locks import only_writer
from ldm_ae.models import (
    Autoencoder,
    ChannelStatistics,
    finite_rows,
    hash_json,
    model_config,
    model_hash,
    redone_batches,
    require_finite,
)

Progress = Callable[[int, int], None]
"""Called with the number of images done and their total."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that another process needs in order to encode units of a store; it can be pickled."""

    path: Path
    """The store's, absolute."""
    request: StoreRequest
    plan: dict[str, Any]
    """Of the `StoreWriter` in the process that has the store's lock."""
    model: Autoencoder
    """In float32."""
    source: Source
    transform: ImageTransform
    workers: int
    device: str
    """As the user named it."""
    check: bool
    working_folder: Path
    """Where the command was given, for images with a relative name."""


Engine = Callable[[Job, range, Progress | None], None]
"""Encodes units in other processes, and returns when all are done."""


@dataclass(frozen=True, kw_only=True)
class EncodeSummary:
    """What `encode_images` did."""

    path: Path
    images: int
    """Good images, each in the store once."""
    bad: dict[str, str]
    """Reason by key of the images that could not be used."""
    statistics: ChannelStatistics
    """Of the stored latents, mirror images not counted."""
    already_complete: bool
    """The store was there, made by the same command; nothing was encoded."""
    redone_batches: int
    """Batches that overflowed in fp16 and were encoded in float32 from the original weights; mirror images are batches
    of their own. 0 in other precisions."""


def encode_images(
    model: Autoencoder,
    source: Source,
    path: str | Path,
    *,
    transform: ImageTransform,
    source_name: str = "",
    batch_size: int = 16,
    workers: int = 0,
    device: str | torch.device = "auto",
    precision: str = "fp32",
    dtype: str = "fp32",
    latents: Literal["sample", "mode"] = "sample",
    content: Literal["full", "samples", "lean"] = "full",
    flips: bool = True,
    seed: int = 0,
    shard_size: int = 1024,
    bad_share: float = 0.01,
    check: bool = True,
    processes: Processes | None = None,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> EncodeSummary:
    """Encode every image of a source into a store.

    The same command goes on where it was stopped, by whatever: a shard that is finished and has the hash of what was
    written stays if its images are still those that were encoded, and the store becomes byte for byte what it would
    have been. On its own complete store it does the same: where nothing has changed nothing is encoded, but every image
    is read once, unless `check` is off.

    Args:
        model: In float32; a copy of it runs, so that it keeps its weights.
        source: The images.
        path: The store's folder, new, empty, or left by the same command.
        transform: To one size, without randomness; mirror images are stored beside, not drawn.
        source_name: Where the images come from, for the index.
        batch_size: Images a forward pass.
        workers: Processes that decode images.
        device: Where to encode; `auto` picks an accelerator if there is one.
        precision: fp32, bf16 or fp16: what the encoder runs in. A batch that overflows in fp16 is encoded in fp32.
        dtype: fp32, bf16, fp16 or uint8: of the stored latents and moments. In uint8 each channel of each image has 256
            levels; the error is measured, and in the statistics.
        latents: Whether `latents` is one posterior sample or the mode.
        content: `samples` leaves the moments out, for a third of the size, and no sample can be drawn again; `lean` the
            latents, for two thirds, and readers draw them from the moments. Of a discrete model `samples` leaves the
            indices out; `lean` keeps them alone, and whoever wants latents needs the model.
        flips: Store the mirror images' latents and moments too.
        seed: Of the posterior samples.
        shard_size: Images of the source that one file covers; it bounds the memory.
        bad_share: Share of unusable images past which this ends with an error, after keeping all that is good.
        check: Read the images of files that are finished, and the files of a complete store, to see whether they are
            what they were; otherwise only the files of an unfinished store are read.
        processes: Which of several processes this is; all see the store's folder. Each encodes a contiguous share of
            the files, and all return when the store is complete. None for one process alone.
        engine: Encodes elsewhere, such as `ldm_ae.latents.ray_engine.RayEngine`. None for this process.
        progress: Called after every batch, with the images of this process alone.

    Raises:
        RunError: the disk is full, or another process has died.
        UserError: another process writes there, the folder holds something else, the image size does not fit the
            model, a latent is not finite, no image is good, or too many are bad.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype '{dtype}' is not one of {', '.join(DTYPES)}")
    if content not in ("full", "samples", "lean"):
        raise UserError(f"content is '{content}'; it must be full, samples or lean")
    if transform.is_random:
        raise UserError("a random crop or flip would be frozen into the store; use crop center without flip")
    if shard_size < 1:
        raise UserError(f"shard_size is {shard_size}; it must be at least 1")
    spec = model.latent_spec
    spec.latent_size(transform.height, transform.width)
    request = StoreRequest(
        source=source_name, images=len(source), keys_hash=_hash_keys(source), model_hash=model_hash(model),
        model_config=model_config(model), scaling=scaling_of(spec), transform=transform.describe(),
        transform_hash=hash_json(transform.describe()), dtype=dtype, precision=precision, latents=latents, flips=flips,
        seed=seed, batch_size=batch_size, shard_size=shard_size, content=content,
        indices=spec.codebook_size is not None and content != "samples",
    )  # fmt: skip
    processes = processes or Processes()
    if engine is not None and processes.count > 1:
        raise UserError("an engine starts its processes itself; give this command without torchrun or accelerate")
    # First, because it may refuse.
    runner = None if engine else inference_copy(model, device=processes.device(device), precision=precision)
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder for the store")
    leads = processes.rank == 0
    with processes.together() as channel, only_writer(make_folder(folder)) if leads else nullcontext():
        look_up = model.indices_to_latents
        writer = StoreWriter(path, request, processes=processes.count, look_up=look_up) if leads else None
        plan = channel.from_first(writer and writer.plan)
        writer = writer or StoreWriter(path, request, plan=plan, look_up=look_up)
        units = writer.share(processes.rank, processes.count)
        hashing = HashingSource(source)
        originals = Originals(hashing, workers=workers, check=check)
        already_complete = writer.complete and channel.all_agree(
            not check or still_holds(writer, units, originals, progress)
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
                encode_units(writer, runner, hashing, originals, transform, workers, units, progress)
            elif engine is not None:
                job = Job(
                    path=writer.path.resolve(), request=request, plan=writer.plan, model=model, source=source,
                    transform=transform, workers=workers, device=str(device), check=check, working_folder=Path.cwd(),
                )  # fmt: skip
                engine(job, units, progress)
            channel.wait_for_all()
            if leads:
                writer.finish()
        channel.wait_for_all()
    store = LatentStore(path)
    bad = store.bad()
    if len(bad) > bad_share * len(source):
        first = "; ".join(f"{key}: {reason}" for key, reason in islice(bad.items(), 3))
        raise UserError(
            f"{path} is complete, but {len(bad)} of {len(source)} images cannot be used, more than the allowed share "
            f"of {bad_share:.1%}\nthe first: {first}"
        )
    return EncodeSummary(
        path=Path(path), images=len(store), bad=bad, statistics=store.statistics, already_complete=already_complete,
        redone_batches=store.redone_batches,
    )  # fmt: skip


def _hash_keys(source: Source) -> str:
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(source.key(index).encode() + b"\0")
    return digest.hexdigest()


def encode_units(
    writer: StoreWriter,
    model: Autoencoder,
    source: HashingSource,
    originals: Originals,
    transform: ImageTransform,
    workers: int,
    units: range,
    progress: Progress | None,
) -> None:
    """Those of the units that are not done yet. Each has a loader of its own, so that no batch reaches over its end."""
    bucket = f"{transform.height}x{transform.width}"
    name = writer.request.source
    first = writer.indices(units.start).start
    total = sum(len(writer.indices(unit)) for unit in units)
    for unit in units:
        indices = writer.indices(unit)
        record = writer.finished(unit)
        if record is None or not originals.unchanged(indices, record.rows):
            loader = EvaluationLoader(
                source, transform, batch_size=writer.request.batch_size, workers=workers, bad_share=1.0, indices=indices
            )
            parts: list[dict[str, Tensor]] = []
            good: dict[int, dict[str, Any]] = {}
            redone_before = redone_batches(model)
            for batch in loader:
                parts.append(_encode_batch(model, batch, writer.request))
                good |= zip(batch.indices.tolist(), _good_rows(batch, name), strict=True)
                if progress is not None:
                    progress(int(batch.indices[-1]) + 1 - first, total)
            rows = [good.get(i) or _bad_row(name, source, i, loader.rejected) for i in indices]
            tensors = {key: torch.cat([part[key] for part in parts]) for key in (parts[0] if parts else {})}
            writer.add_shard(unit, bucket, tensors, rows, redone_batches=redone_batches(model) - redone_before)
        elif progress is not None:
            progress(indices.stop - first, total)
    if progress is not None:
        progress(total, total)


@torch.inference_mode()
def _encode_batch(model: Autoencoder, batch: Batch, request: StoreRequest) -> dict[str, Tensor]:
    """The tensors of a shard for the images of one batch, on the CPU."""
    device = model.last_layer.device
    pinned = batch.pin_memory() if device.type == "cuda" else batch
    pixel_values = pinned.pixel_values.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
    dtype = torch.float32 if request.dtype == "uint8" else DTYPES[request.dtype]
    computed: dict[str, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    views = {"": pixel_values, "_flip": pixel_values.flip(3)} if request.flips else {"": pixel_values}
    for suffix, view in views.items():
        posterior = model.encode(view)
        if request.content != "lean":
            values = posterior.mode()
            if request.latents == "sample":
                seeds = torch.tensor([derive_seed(request.seed, key, suffix) for key in batch.keys])
                values = posterior.sample(noise=seeded_noise(seeds, tuple(values.shape[1:])))
            computed[f"latents{suffix}"] = values
        elif posterior.moments is None and posterior.indices is None:
            raise UserError("a lean store holds moments or indices, and this model has none; store samples, or full")
        if posterior.indices is not None and request.indices:
            # An index is finite, whatever it stands for.
            require_finite(posterior.mode(), batch.keys, request.precision, what="latents")
            narrow = index_dtype(request.scaling["codebook_size"])
            tensors[f"indices{suffix}"] = posterior.indices.cpu().to(narrow)  # few devices know unsigned types
        if posterior.moments is not None and request.content != "samples":
            computed[f"moments{suffix}"] = posterior.moments
    tensors |= {name: values.to(dtype).cpu() for name, values in computed.items()}
    if request.dtype == "uint8":
        tensors = pack(tensors, lambda floats: latents_of(floats, batch.keys, request))
    for name, tensor in tensors.items():
        finite = finite_rows(tensor)
        if not finite.all():
            for values_name, values in computed.items():
                require_finite(values, batch.keys, request.precision, what=values_name)
            key = batch.keys[int((~finite).nonzero()[0])]
            raise UserError(
                f"{name.removesuffix(SCALE)} of {key} are too large to be stored as {request.dtype}; store bf16 or fp32"
            )
    return tensors | {
        "labels": batch.labels,
        "index": batch.indices,
        "original_size": batch.original_sizes,
        "crop_ltrb": batch.crops_ltrb,
    }


def _good_rows(batch: Batch, source: str) -> list[dict[str, Any]]:
    """A manifest row for each image of a batch."""
    sizes, crops, labels = batch.original_sizes.tolist(), batch.crops_ltrb.tolist(), batch.labels.tolist()
    rows = []
    for i, key in enumerate(batch.keys):
        source_hash, caption = HashingSource.split(batch.captions[i])
        rows.append(
            {
                "key": key,
                "source": source,
                "source_hash": source_hash,
                "height": sizes[i][0],
                "width": sizes[i][1],
                "crop": crops[i],
                "label": labels[i],
                "caption": caption,
                "status": "ok",
            }
        )
    return rows


def _bad_row(name: str, source: HashingSource, index: int, rejected: dict[str, str]) -> dict[str, Any]:
    key, source_hash = source.key(index), source.look_at(index).source_hash
    return {
        "key": key, "source": name, "source_hash": source_hash, "label": -1, "status": "bad", "error": rejected[key],
    }  # fmt: skip
