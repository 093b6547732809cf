"""Decoding of latents, and reconstruction of images, to files named by key: PNG, or TIFF or arrays for other images."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm_ae.core.devices import pick_device
from ldm_ae.core.errors import UserError
from ldm_ae.core.precision import inference_numerics
from ldm_ae.data import BucketTransform, ImageTransform, RangeLoader, Source, WholeTransform, described_options
from ldm_ae.images.crops import Crops, measure_crops
from ldm_ae.images.georeference import ExtraTag
from ldm_ae.images.missing import known
from ldm_ae.images.pixels import RGB, PixelSpec
from ldm_ae.images.uint8 import to_uint8
from ldm_ae.images.writing import FileKind, encode_image, kind_of_files
from ldm_ae.io.files import new_folder, require_new_folder
from ldm_ae.latents.encoding.jobs import Progress
from ldm_ae.latents.georeferences import Georeferences
from ldm_ae.latents.store.batches import BucketBatchSampler
from ldm_ae.latents.store.provenance import inference_copy
from ldm_ae.latents.store.reader import LatentDataset, LatentStore
from ldm_ae.models import Autoencoder, require_finite

_Tags = Callable[[str, tuple[int, int]], list[ExtraTag]]
"""Tags of a TIFF file by the image's key and (height, width)."""
_UNSAFE = re.compile(r'[<>:"|?*\x00-\x1f\x7f]')
_WRITERS = 4  # PNG compression releases the interpreter's lock


def output_names(keys: Iterable[str], suffix: str = "png") -> dict[str, str]:
    """Return a distinct relative path ending in `suffix` for each key; for any key it lies inside the output folder.

    The suffix replaces the key's own extension. Parts that lead elsewhere (.., a leading /, a drive) are dropped,
    and characters that a file system rejects are replaced. If two names are equal (a.jpg and a.gif, or by case alone),
    or one key's file would be another's folder, the later name gets a number.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()  # files and folders, lower case
    files: set[str] = set()
    for key in keys:
        parts = [_safe(part) for part in re.split(r"[/\\]", key) if part.strip(". ")] or ["image"]
        stem = re.sub(r"\.[A-Za-z0-9]{1,5}$", "", "/".join(parts)) or "image"
        folders = ["/".join(parts[: i + 1]).lower() for i in range(len(parts) - 1)]
        name, number = f"{stem}.{suffix}", 2
        if any(folder in files for folder in folders):
            name = f"image-{hashlib.sha256(key.encode()).hexdigest()[:16]}.{suffix}"
            folders = []
        while name.lower() in taken:
            name, number = f"{stem}-{number}.{suffix}", number + 1
        names[key] = name
        files.add(name.lower())
        taken |= {name.lower(), *folders}
    return names


def _safe(part: str) -> str:
    part = _UNSAFE.sub("_", part).strip(" ")
    # 255 bytes is the longest name that common file systems accept.
    return part if len(part.encode()) <= 200 else hashlib.sha256(part.encode()).hexdigest()


def decode_store(
    model: Autoencoder,
    store: str | Path,
    out: str | Path,
    *,
    latents: Literal["stored", "mode"] = "stored",
    batch_size: int = 16,
    device: str | torch.device = "auto",
    precision: str = "fp32",
    limit: int | None = None,
    allow_other_model: bool = False,
    files: FileKind | None = None,
    georeferences: Georeferences | None = None,
    progress: Progress | None = None,
) -> int:
    """Decode the images of a store to files named by their keys.

    Args:
        model: The model, in float32; a copy of it runs.
        store: The store's folder.
        out: A new or empty folder.
        latents: `stored` decodes `latents` as diffusion trainers get them, `mode` the moments' mean. If the store holds
            indices alone, both decode the latents that the model looks up.
        batch_size: Images per forward pass.
        device: The device that decodes; `auto` picks an accelerator if there is one.
        precision: auto, fp32, bf16 or fp16. A batch that overflows in fp16 is computed again in fp32.
        limit: Decode the first `limit` images of the store only; None for all.
        allow_other_model: Decode with a model whose hash is not the store's, such as a fine-tuned decoder.
        files: png, tif or npy; None for PNG where it can hold the model's images, else npy.
        georeferences: With `files="tif"`, those of the encoded images, which the files get.
        progress: Called after every batch.

    Returns:
        The number of images written.

    Raises:
        UserError: `limit` is below 1, the store is not valid or belongs to another model, an image does not decode to
            finite values, or `out` is not empty or cannot be written.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}; it must be at least 1")
    pixels = model.pixel_spec
    kind = kind_of_files(pixels, files)
    if georeferences is not None and kind != "tif":
        raise UserError(f"{kind} files cannot hold georeferences; write tif, or give no images")
    opened = LatentStore(store)
    if not allow_other_model:
        opened.check_model(model)
    if opened.spec.channels != model.latent_spec.channels:
        raise UserError(f"{store} has {opened.spec.channels} channels, the model has {model.latent_spec.channels}")
    codes = [(s.codebook_size, s.codebook_levels, s.codebook_maps) for s in (opened.spec, model.latent_spec)]
    looked_up = opened.request.indices_alone
    if looked_up and codes[0] != codes[1]:
        raise UserError(f"{store} has indices of {_codes(*codes[0])}, the model has {_codes(*codes[1])}")
    data = LatentDataset(opened, draw="indices" if looked_up else latents)
    keys = opened.good()["key"].to_pylist()[:limit]
    sampler = BucketBatchSampler(data, batch_size, shuffle=False)
    device = pick_device(device) if isinstance(device, str) else device
    precision = inference_numerics(precision, device).precision
    runner = inference_copy(model, device=device, precision=precision)

    def batches() -> Iterator[tuple[list[str], Tensor]]:
        for batch in sampler:
            positions = [position for position in batch if position < len(keys)]
            if not positions:
                continue
            names = [keys[position] for position in positions]
            values = torch.stack([data.read(position) for position in positions])
            if looked_up:
                assert runner.codebook is not None, "the model has the store's codebook"
                values = runner.codebook.latents(values)
            yield names, _decode(runner, values, names, precision)

    tags = None if georeferences is None else _tags_of_store(opened, georeferences)
    writer = partial(_write, pixels=pixels, kind=kind)
    names = output_names(keys, kind)
    return _write_images(batches(), names, out, writer, total=len(keys), tags=tags, progress=progress)


def _tags_of_store(store: LatentStore, georeferences: Georeferences) -> _Tags:
    """Return the tags of the store's images, which were cropped as it records."""
    described = store.request.transform
    if described.get("crop") not in ("center", "adm"):
        raise UserError(f"{store.path} does not record crops at the center, so that no georeference can be kept")
    options = described_options(described)
    rows = store.good().select(["key", "height", "width"]).to_pylist()
    originals = {row["key"]: (row["height"], row["width"]) for row in rows}

    def tags(key: str, size: tuple[int, int]) -> list[ExtraTag]:
        return georeferences.tags(ImageTransform(size=size, **options), key, size, originals[key])

    return tags


class Reconstructions(NamedTuple):
    """The results of `reconstruct_images`."""

    images: int
    crops: Crops
    """The parts of the images that were cropped off."""
    notes: list[str]
    """Lines on georeferences, with `files="tif"`."""


def reconstruct_images(
    model: Autoencoder,
    source: Source,
    out: str | Path,
    *,
    transform: ImageTransform | BucketTransform | WholeTransform,
    batch_size: int = 16,
    workers: int = 0,
    device: str | torch.device = "auto",
    precision: str = "fp32",
    max_bad_fraction: float = 0.01,
    files: FileKind | None = None,
    progress: Progress | None = None,
) -> Reconstructions:
    """Encode and decode every image, by the posterior's mode, to a file named by its key.

    Missing samples of an image are missing in its file.

    Args:
        model: The model, in float32; a copy of it runs.
        source: The images.
        out: A new or empty folder.
        transform: The transform to one size, several, or each image's own; the model's downsample factor must divide
            them.
        batch_size: Images per forward pass.
        workers: Number of processes that decode image files.
        device: The device; `auto` picks an accelerator if there is one.
        precision: auto, fp32, bf16 or fp16. A batch that overflows in fp16 is computed again in fp32.
        max_bad_fraction: Fraction of unusable images above which this ends with an error, after all valid images.
        files: png, tif or npy; None for PNG where it can hold the model's images, else npy.
        progress: Called after every batch.

    Raises:
        UserError: The size does not fit the model, too many images are bad, a reconstruction is not finite, or `out`
            is not empty or cannot be written.
    """
    pixels = model.pixel_spec
    pixels.require_match(transform.pixels, "the transform")
    kind = kind_of_files(pixels, files)
    for size in transform.sizes:
        model.latent_spec.latent_size(*size)
    loader = RangeLoader(
        source,
        transform,
        ranges=[range(len(source))],
        batch_size=batch_size,
        workers=workers,
        max_bad_fraction=max_bad_fraction,
    )
    device = pick_device(device) if isinstance(device, str) else device
    precision = inference_numerics(precision, device).precision
    runner = inference_copy(model, device=device, precision=precision)
    crops, originals, sizes = ([np.empty((0, columns), np.int64)] for columns in (4, 2, 2))

    def batches() -> Iterator[tuple[list[str], Tensor]]:
        for _, batch in loader:
            crops.append(batch.crops_ltrb.numpy())
            originals.append(batch.original_sizes.numpy())
            sizes.append(np.broadcast_to(batch.pixel_values.shape[-2:], (len(batch), 2)))
            yield batch.keys, _decode(runner, batch.pixel_values, batch.keys, precision, encode=True)

    names = output_names((source.key(index) for index in range(len(source))), kind)
    writer = partial(_write, pixels=pixels, kind=kind)
    georeferences = Georeferences(source) if kind == "tif" and not transform.is_random else None
    tags = None if georeferences is None else partial(georeferences.tags, transform)
    images = _write_images(batches(), names, out, writer, total=len(source), tags=tags, progress=progress)
    notes = [] if georeferences is None else georeferences.lines()
    return Reconstructions(images, measure_crops(*map(np.concatenate, (crops, originals, sizes))), notes)


def _codes(size: int | None, levels: int | None, maps: int | None) -> str:
    parts = f" in {maps} maps" if maps else f" in {levels} levels" if levels else ""
    return f"{size or 'no'} codes{parts}"


@torch.inference_mode()
def _decode(model: Autoencoder, values: Tensor, keys: list[str], precision: str, *, encode: bool = False) -> Tensor:
    """Decode latents, or images to be encoded first, to samples (B, C, H, W) on the CPU; UserError if not finite."""
    values, pixels = values.to(model.device), model.pixel_spec
    latents = model.encode(values).mode() if encode else values
    images = model.decode(latents)
    require_finite(images, keys, precision)  # NaN would be written as black.
    if pixels == RGB:
        return to_uint8(images).cpu()
    stored = pixels.denormalize(images).cpu()
    if encode and pixels.missing is not None:
        stored = torch.where(known(values).cpu(), stored.to(torch.float64), pixels.missing).to(stored.dtype)
    return stored


def _write_images(
    batches: Iterator[tuple[list[str], Tensor]], names: dict[str, str], out: str | Path,
    writer: Callable[[Path, Tensor, Sequence[ExtraTag]], None], *, total: int, tags: _Tags | None,
    progress: Progress | None,
) -> int:  # fmt: skip
    """Write files while the next batch is computed, and return their number."""
    folder = Path(out)
    require_new_folder(folder, "the images")
    done = 0
    pending: list[Future[None]] = []
    with new_folder(folder), ThreadPoolExecutor(_WRITERS) as pool:
        for keys, images in batches:
            for future in pending:
                future.result()
            size = images.shape[-2], images.shape[-1]
            pending = [
                pool.submit(writer, folder / names[key], image, () if tags is None else tags(key, size))
                for key, image in zip(keys, images, strict=True)
            ]
            done += len(keys)
            if progress is not None:
                progress(done, total)
        for future in pending:
            future.result()
    return done


def _write(path: Path, image: Tensor, tags: Sequence[ExtraTag], *, pixels: PixelSpec, kind: FileKind) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_image(image.numpy(), pixels, kind, tags))
