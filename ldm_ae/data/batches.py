"""A batch, and how any process builds it from its indices."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ldm_ae.core.errors import RunError, UserError, printable, reason
from ldm_ae.core.seeding import mix_seed
from ldm_ae.data.randomness import NOISE, REPLACEMENT, TRANSFORM
from ldm_ae.data.sources.interface import RawImage, Source
from ldm_ae.data.texts import LABEL_LIMIT
from ldm_ae.images.buckets import BucketTransform, WholeTransform
from ldm_ae.images.decoding import BadImage, Decoded
from ldm_ae.images.samples import Samples
from ldm_ae.images.transforms import ImageTransform, TransformedImage

_log = logging.getLogger("ldm_ae")
_MAX_ATTEMPTS = 32  # replacements tried for one image; with a tenth of a data set bad, the chance to fail is 1e-32


class _Item(NamedTuple):
    number: int
    """Index into the source."""
    noise_seed: int
    raw: RawImage
    """The image as stored in the source; without its bytes if it was cached."""
    decoded: Decoded
    transformed: TransformedImage


class Failure(NamedTuple):
    """The reason why a worker cannot continue; `error` converts it to an exception in the main process."""

    message: str
    trace: str = ""
    """Traceback of an error that is not the user's mistake."""

    @classmethod
    def of(cls, error: Exception, key: str) -> Failure:
        """Return the failure of an error that is being handled, raised while the image `key` was read."""
        if isinstance(error, UserError):
            return cls(str(error))
        text = f"{key}: unexpected {type(error).__name__} while reading this image: {reason(error)}"
        return cls(text, traceback.format_exc())

    def error(self) -> Exception:
        """Return the exception that the main process raises."""
        if not self.trace:
            return UserError(self.message)
        _log.error("%s", self.trace.rstrip())
        return RunError(self.message)


def unusable(error: BadImage | OSError) -> str:
    """Return the reason why an image is not used."""
    return f"cannot be read: {error.strerror or error}" if isinstance(error, OSError) else str(error)


@dataclass(kw_only=True)
class Batch:
    """Images of one size, with their metadata. B is the number of images."""

    pixel_values: Tensor
    """(B, C, H, W) float32 in [-1, 1]."""
    indices: Tensor
    """(B,) int64 indices into the source."""
    keys: list[str]
    """Keys of the images in the source."""
    seeds: Tensor
    """(B,) int64 >= 0: each sample's own randomness, for `seeded_noise`; crop and flip use other random numbers."""
    labels: Tensor
    """(B,) int64, -1 where an image has no label."""
    captions: list[str | None]
    """Texts, None where an image has no caption."""
    original_sizes: Tensor
    """(B, 2) int64, height and width after the EXIF rotation."""
    crops_ltrb: Tensor
    """(B, 4) int64, left, top, right, bottom of the visible part, in pixels of the original."""
    notes: list[tuple[str, ...]]
    """Reasons why an existing caption or label of an image is not used."""
    orientations: Tensor
    """(B,) int64, the EXIF orientation that was undone, 1 to 8."""
    colour_profiles: list[str | None]
    """Colour conversion of each file, see `Decoded`."""
    rejected: dict[str, str] = field(default_factory=dict)
    """Reasons by key of the unusable images that were found while this batch was built."""

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, rows: slice) -> Batch:
        """Return a batch with some of the images."""
        named = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "rejected"}
        return Batch(**{name: value[rows] for name, value in named.items()})

    def pin_memory(self) -> Batch:
        """Return a copy whose pixels are in pinned memory."""
        return replace(self, pixel_values=self.pixel_values.pin_memory())

    def to(self, device: torch.device | str) -> Batch:
        """Return a copy with pixels and labels on `device`; other fields stay on the CPU, where they are read."""
        return replace(
            self,
            pixel_values=self.pixel_values.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
        )


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Join batches of images of one size; `rejected` is dropped."""
    if len(batches) == 1:
        return batches[0]
    joined: dict[str, Any] = {}
    for entry in fields(Batch):
        values = [getattr(batch, entry.name) for batch in batches]
        if isinstance(values[0], Tensor):
            joined[entry.name] = torch.cat(values)
        elif isinstance(values[0], list):
            joined[entry.name] = [value for part in values for value in part]
    return Batch(**joined)


class DecodedCache:
    """Decoded images that a worker keeps, the first ones that it reads, up to a number of bytes."""

    def __init__(self, room: int) -> None:
        self.images: dict[int, tuple[RawImage, Decoded]] = {}
        """The images by their index, without the bytes of their files."""
        self._room = room

    def add(self, index: int, raw: RawImage, decoded: Decoded) -> None:
        """Keep an image if it fits."""
        image = decoded.image
        size = image.nbytes if isinstance(image, Samples) else len(image.getbands()) * image.width * image.height
        if size <= self._room:
            self._room -= size
            self.images[index] = raw._replace(data=b""), decoded


class BatchBuilder(Dataset[Batch]):
    """Builder of a batch from (epoch, index) pairs, run in the workers. The result does not depend on the worker.

    A bad image is skipped, or with `replace_bad` replaced by another that its own seed selects, so that training
    batches are always full.
    """

    def __init__(
        self,
        source: Source,
        transform: ImageTransform | BucketTransform | WholeTransform,
        *,
        seed: int,
        pool: Tensor,
        replace_bad: bool,
        cache: DecodedCache | None = None,
        larger_pool: Tensor | None = None,
    ) -> None:
        """Store the arguments: `pool` holds the (N,) int64 indices in use, from which replacements are taken, and
        `larger_pool` those that are tried after half of the attempts; `cache` keeps decoded images.
        """
        self.source = source
        self.transform = transform
        self.seed = seed
        self.pool = pool
        self.replace_bad = replace_bad
        self._larger_pool = pool if larger_pool is None else larger_pool
        self._cache = cache or DecodedCache(0)
        self._at = 0
        """Index of the image that is being read, for the message of an unexpected error."""

    def __getitems__(self, samples: list[tuple[int, int]]) -> Batch | Failure:
        """Return one batch, with fewer images than requested if some are bad and not replaced.

        Returns:
            The batch, or the reason why there is none: if it were raised here, torch would wrap it with a worker's
            traceback, and as an object it would form a cycle with the frame that raises it and keep the workers alive.
        """
        found = self._load_all(samples)
        if isinstance(found, Failure):
            return found
        assert isinstance(self.transform, ImageTransform), "images of several sizes do not form a batch"
        size = self.transform.height, self.transform.width
        return _collate(*found, self.transform.pixels.channels, size)

    def by_size(self, samples: list[tuple[int, int]]) -> list[Batch] | Failure:
        """Return a batch for each size of the images after the transform, in the order in which sizes first occur.

        The first batch has all rejected images; if no image is good, it is empty. Errors are as in `__getitems__`.
        """
        found = self._load_all(samples)
        if isinstance(found, Failure):
            return found
        items, rejected = found
        sizes: dict[tuple[int, int], list[_Item]] = {}
        for item in items:
            height, width = item.transformed.pixel_values.shape[1:]
            sizes.setdefault((height, width), []).append(item)
        channels = self.transform.pixels.channels
        batches = [_collate(same, {}, channels, size) for size, same in (sizes or {(0, 0): []}).items()]
        batches[0].rejected = rejected
        return batches

    def _load_all(self, samples: list[tuple[int, int]]) -> tuple[list[_Item], dict[str, str]] | Failure:
        """Return the good images, and the reasons of the bad ones; or the reason why loading cannot continue."""
        rejected: dict[str, str] = {}
        items = []
        for epoch, index in samples:
            try:
                items.append(self._load(epoch, index, rejected))
            except Exception as error:  # noqa: BLE001 - raised again in the main process, with the image's name
                return Failure.of(error, self.source.key(self._at))
        return [item for item in items if item is not None], rejected

    def __getitem__(self, sample: tuple[int, int]) -> Batch | Failure:  # type: ignore[override]
        """Return a batch of one image, for debugging."""
        return self.__getitems__([sample])

    def _load(self, epoch: int, index: int, rejected: dict[str, str]) -> _Item | None:
        """Return a sample or its replacement; None if it is bad and skipped."""
        generator = torch.Generator().manual_seed(mix_seed(self.seed, TRANSFORM, epoch, index))
        noise_seed = mix_seed(self.seed, NOISE, epoch, index)
        candidate = index
        for attempt in range(_MAX_ATTEMPTS):
            self._at = candidate
            try:
                raw, decoded = self._decoded(candidate)
                return _Item(candidate, noise_seed, raw, decoded, self.transform(decoded.image, generator))
            except (BadImage, OSError) as error:
                rejected[self.source.key(candidate)] = unusable(error)
            if not self.replace_bad:
                return None
            pool = self.pool if attempt < _MAX_ATTEMPTS // 2 else self._larger_pool
            candidate = int(pool[mix_seed(self.seed, REPLACEMENT, epoch, index, attempt) % len(pool)])
        raise UserError(
            f"{len(rejected)} images in a row cannot be used: " + "; ".join(f"{k}: {r}" for k, r in rejected.items())
        )

    def _decoded(self, index: int) -> tuple[RawImage, Decoded]:
        if index in self._cache.images:
            return self._cache.images[index]
        raw = self.source[index]
        if raw.label is not None and not 0 <= raw.label < LABEL_LIMIT:
            raise BadImage(f"its label {printable(raw.label, 40)} is not a class number from 0 to 2^63 - 1")
        decoded = self.transform.decode(raw.data)
        self._cache.add(index, raw, decoded)
        return raw, decoded


class BySize(Dataset[list[Batch]]):
    """Builder of a batch for each size among the requested images, run in the workers."""

    def __init__(self, builder: BatchBuilder):
        self._builder = builder

    def __getitems__(self, samples: list[tuple[int, int]]) -> list[Batch] | Failure:
        """Return the batches, or the reason why there are none, see `BatchBuilder`."""
        return self._builder.by_size(samples)


def _collate(items: list[_Item], rejected: dict[str, str], channels: int, size: tuple[int, int]) -> Batch:
    pixels = [item.transformed.pixel_values for item in items]
    labels = [-1 if item.raw.label is None else item.raw.label for item in items]
    sizes = [item.transformed.original_size for item in items]
    crops = [item.transformed.crop_ltrb for item in items]
    return Batch(
        pixel_values=torch.stack(pixels) if pixels else torch.empty(0, channels, *size),
        indices=torch.tensor([item.number for item in items], dtype=torch.int64),
        keys=[item.raw.key for item in items],
        seeds=torch.tensor([item.noise_seed for item in items], dtype=torch.int64),
        labels=torch.tensor(labels, dtype=torch.int64),
        captions=[item.raw.caption for item in items],
        original_sizes=torch.tensor(sizes, dtype=torch.int64).reshape(-1, 2),
        crops_ltrb=torch.tensor(crops, dtype=torch.int64).reshape(-1, 4),
        notes=[item.raw.notes for item in items],
        orientations=torch.tensor([item.decoded.orientation for item in items], dtype=torch.int64),
        colour_profiles=[item.decoded.colour_profile for item in items],
        rejected=rejected,
    )
