"""Training images of several sizes: the size of each image, and a stream in which all images of a step have one size.

A *bucket* is the images that are cropped to one size. It has an endless stream of its own: the concatenation over its
epochs of a permutation of its images. Each step takes the next G images, those of all processes and micro-batches,
from the stream of one bucket. In the epochs 0 to e, a bucket of n images has floor((e + 1) n / G) steps, so buckets
occur in proportion to their images; the steps of an epoch are shuffled. Images that do not fill a step at the end of an
epoch are carried over: they are the first ones of the bucket's next step. No image is dropped or duplicated. A step of
a bucket with fewer than G images has each of them several times, with other crops, and comes after several epochs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from ldm_ae.core.errors import UserError
from ldm_ae.core.processes import gather_objects, works_together
from ldm_ae.core.seeding import mix
from ldm_ae.data.batches import Batch, BatchBuilder, DecodedCache, Failure, unusable
from ldm_ae.data.randomness import BUCKETS, epoch_order
from ldm_ae.data.sources.interface import Source
from ldm_ae.data.workers import data_loader, signals_held_back
from ldm_ae.images.buckets import BucketTransform, Size
from ldm_ae.images.decoding import BadImage

_CHUNK = 64
"""Images whose headers a worker reads at a time."""
_BAD = -1


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """The sizes to which images are cropped, and their images."""

    sizes: list[Size]
    """(height, width) of each bucket that has images."""
    members: list[NDArray[np.int64]]
    """Indices into the source of each bucket's images, ascending."""
    rejected: dict[str, str]
    """Reasons by key of the images whose header shows that they are bad; they are in no bucket."""

    def identity(self) -> str:
        """Return the number of images of each size, and a hash of which ones they are, as a JSON object."""
        entries = {}
        for name, members in zip(self.names, self.members, strict=True):
            digest = hashlib.sha256(members.astype("<i8").tobytes()).hexdigest()
            entries[name] = f"{len(members)} images ({digest[:12]})"
        return json.dumps(entries)

    @property
    def names(self) -> list[str]:
        """HxW of each bucket."""
        return [f"{height}x{width}" for height, width in self.sizes]

    def smaller_than(self, images: int) -> dict[str, int]:
        """Return the number of images of each bucket that has fewer than `images`, by its name."""
        counts = zip(self.names, map(len, self.members), strict=True)
        return {name: count for name, count in counts if count < images}


def find_buckets(
    source: Source, indices: NDArray[np.int64], transform: BucketTransform, *, workers: int = 0, rank: int = 0,
    world_size: int = 1, progress: Callable[[int], None] | None = None,
) -> Buckets:  # fmt: skip
    """Assign images to the sizes of a transform, by the sizes in their headers.

    Args:
        source: The images.
        indices: The images to assign.
        transform: Its `choose` assigns images.
        workers: Processes that read headers; 0 reads in this one.
        rank: Rank of this process.
        world_size: Number of processes. If torch connects as many, each reads a part, and all get the same result.
        progress: Receives the number of images read by this process so far, of all its images.

    Raises:
        UserError: No image has a valid header.
        RunError: A source failed.
    """
    together = works_together(world_size)
    first, end = (len(indices) * part // world_size for part in (rank, rank + 1)) if together else (0, len(indices))
    part = _read_sizes(source, indices[first:end], transform, workers, progress)
    parts = gather_objects(part) if together else [part]
    for failure in (part.failure for part in parts):
        if failure is not None:
            raise failure.error()
    chosen = np.concatenate([part.chosen for part in parts])
    rejected = {key: reason for part in parts for key, reason in part.rejected.items()}
    used = [number for number in range(len(transform.sizes)) if (chosen == number).any()]
    if not used:
        key, reason = next(iter(rejected.items()))
        raise UserError(f"none of the {len(indices)} images can be used; the first: {key}: {reason}")
    ordered = [np.sort(indices[chosen == number]) for number in used]
    return Buckets(sizes=[transform.sizes[number] for number in used], members=ordered, rejected=rejected)


class _Part(NamedTuple):
    chosen: NDArray[np.int16]
    """(N,) number of each image's size among those of the transform, or `_BAD`."""
    rejected: dict[str, str]
    failure: Failure | None = None
    """The reason why reading cannot continue."""


def _read_sizes(
    source: Source, indices: NDArray[np.int64], transform: BucketTransform, workers: int,
    progress: Callable[[int], None] | None,
) -> _Part:  # fmt: skip
    with signals_held_back():
        parts = iter(data_loader(_HeaderReader(source, transform), _Chunks(indices), workers, persistent=False))
    chosen, done = [np.empty(0, np.int16)], 0
    rejected: dict[str, str] = {}
    try:
        for part in parts:
            if part.failure is not None:
                return _Part(chosen[0], {}, part.failure)
            chosen.append(part.chosen)
            rejected |= part.rejected
            done += len(part.chosen)
            if progress is not None:
                progress(done)
    finally:
        del parts  # for the reason given in TrainingLoader.steps
    return _Part(np.concatenate(chosen), rejected)


class _Chunks(Sampler[list[tuple[int, int]]]):
    """(0, index) pairs of `_CHUNK` images each."""

    def __init__(self, indices: NDArray[np.int64]):
        self._indices = indices

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for start in range(0, len(self._indices), _CHUNK):
            yield [(0, index) for index in self._indices[start : start + _CHUNK].tolist()]


class _HeaderReader(Dataset[_Part]):
    """Reader of the headers of some images, run in the workers."""

    def __init__(self, source: Source, transform: BucketTransform):
        self._source, self._transform = source, transform
        self._numbers = {size: number for number, size in enumerate(transform.sizes)}
        self._chosen: dict[Size, int] = {}  # many images have the same size

    def __getitems__(self, samples: list[tuple[int, int]]) -> _Part:
        """Return the part of these images."""
        chosen = np.full(len(samples), _BAD, np.int16)
        rejected: dict[str, str] = {}
        for place, (_, index) in enumerate(samples):
            try:
                with self._source.open_image(index) as file:
                    chosen[place] = self._choose(self._transform.decode.size_of(file))
            except (BadImage, OSError) as error:
                rejected[self._source.key(index)] = unusable(error)
            except Exception as error:  # noqa: BLE001 - raised again in the main process, with the image's name
                return _Part(chosen, {}, Failure.of(error, self._source.key(index)))
        return _Part(chosen, rejected)

    def _choose(self, size: Size) -> int:
        if size not in self._chosen:
            self._chosen[size] = self._numbers[self._transform.choose(*size)]
        return self._chosen[size]


class BucketSampler(Sampler[list[tuple[int, int]]]):
    """(epoch, index) pairs of one rank's micro-batches, without end, from a step of the global stream.

    Micro-batch j of rank r has the `batch_size` images of the step that start at (j * world_size + r) * batch_size.
    `epoch` counts the epochs of the image's bucket.

    Args:
        members: Indices of each bucket's images.
        seed: Seed of the order.
        step: Number of steps before the first one.
        batch_size: Images of one micro-batch.
        accumulation: Micro-batches of one step.
        rank: Rank of this process.
        world_size: Number of processes.
    """

    def __init__(
        self, members: list[NDArray[np.int64]], seed: int, step: int, *, batch_size: int, accumulation: int, rank: int,
        world_size: int,
    ):  # fmt: skip
        self._members, self._seed, self._step = members, seed, step
        self._counts = np.array([len(indices) for indices in members], np.int64)
        self._global_batch = batch_size * accumulation * world_size
        self._starts = [(j * world_size + rank) * batch_size for j in range(accumulation)]
        self._batch_size = batch_size
        self._orders: dict[int, tuple[int, NDArray[np.int64]]] = {}  # by bucket: an epoch, and the order in it

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for bucket, step in self._steps():
            for start in self._starts:
                first = step * self._global_batch + start
                yield [self._sample(bucket, position) for position in range(first, first + self._batch_size)]

    def _steps(self) -> Iterator[tuple[int, int]]:
        """Yield the bucket of each step, and its number among the steps of that bucket."""
        epoch = self._epoch_of(self._step)
        skipped = self._step - int(self._before(epoch).sum())
        while True:
            before = self._before(epoch)
            buckets = np.repeat(np.arange(len(before)), self._before(epoch + 1) - before)
            keys = mix(self._seed, BUCKETS, epoch, np.arange(len(buckets)))
            buckets = buckets[np.argsort(keys, kind="stable")]
            taken = before + np.bincount(buckets[:skipped], minlength=len(before))
            for bucket in buckets[skipped:].tolist():
                yield bucket, int(taken[bucket])
                taken[bucket] += 1
            epoch, skipped = epoch + 1, 0

    def _before(self, epoch: int) -> NDArray[np.int64]:
        """Return the number of steps of each bucket before an epoch."""
        return epoch * self._counts // self._global_batch

    def _epoch_of(self, step: int) -> int:
        """Return the epoch of a step: the last one that has at most `step` steps before it."""
        # Before epoch e there are at most e N / G steps, and fewer than one step less for each bucket.
        first = step * self._global_batch // int(self._counts.sum())
        end = (step + len(self._counts)) * self._global_batch // int(self._counts.sum()) + 2
        while end - first > 1:
            middle = (first + end) // 2
            first, end = (middle, end) if self._before(middle).sum() <= step else (first, middle)
        return first

    def _sample(self, bucket: int, position: int) -> tuple[int, int]:
        """Return the (epoch, index) pair at a position of a bucket's stream."""
        epoch, place = divmod(position, int(self._counts[bucket]))
        if self._orders.get(bucket, (-1,))[0] != epoch:
            self._orders[bucket] = epoch, epoch_order(self._members[bucket], self._seed, epoch)
        return epoch, int(self._orders[bucket][1][place])


class BucketBuilder(Dataset[Batch]):
    """Builder of a batch of one bucket from (epoch, index) pairs. Bad images are replaced by others of their bucket."""

    def __init__(
        self, source: Source, transform: BucketTransform, buckets: Buckets, *, seed: int, cache_bytes: int = 0
    ) -> None:
        """Store the arguments, as `BatchBuilder` does."""
        cache = DecodedCache(cache_bytes)
        everything = torch.from_numpy(np.sort(np.concatenate(buckets.members)))
        self._builders = [
            BatchBuilder(
                source, transform.transforms[size], seed=seed, pool=torch.from_numpy(members), replace_bad=True,
                cache=cache, larger_pool=everything,
            )
            for size, members in zip(buckets.sizes, buckets.members, strict=True)
        ]  # fmt: skip
        self._bucket_of = np.full(len(source), _BAD, np.int16)
        for number, members in enumerate(buckets.members):
            self._bucket_of[members] = number

    def __getitems__(self, samples: list[tuple[int, int]]) -> Batch | Failure:
        """Return one batch, or the reason why there is none, see `BatchBuilder`."""
        return self._builders[self._bucket_of[samples[0][1]]].__getitems__(samples)
