"""Loading as a function of (seed, position) alone: resumable anywhere, the same for any number of processes.

The training stream is the concatenation over epochs of a permutation of the images. Global step s takes the positions
[s G, (s + 1) G) with G = batch_size * world_size * accumulation, and micro-batch j of rank r takes the batch_size
positions that start at (j * world_size + r) * batch_size. No image is dropped or duplicated where epochs meet.
`buckets.py` has the stream of images of several sizes.
Prefetching, pinning and worker processes are `torch.utils.data.DataLoader`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

from ldm_ae.core.errors import UserError
from ldm_ae.data.batches import Batch, BatchBuilder, BySize, DecodedCache, Failure
from ldm_ae.data.buckets import BucketBuilder, Buckets, BucketSampler, find_buckets
from ldm_ae.data.randomness import chosen_indices, epoch_order
from ldm_ae.data.sources.interface import Source
from ldm_ae.data.workers import data_loader, signals_held_back
from ldm_ae.images.buckets import BucketTransform, WholeTransform
from ldm_ae.images.transforms import ImageTransform

_log = logging.getLogger("ldm_ae")


class _StreamSampler(Sampler[list[tuple[int, int]]]):
    """(epoch, index) pairs of one rank's micro-batches, without end, from a position of the global stream."""

    def __init__(self, indices: NDArray, seed: int, position: int, batch_size: int, rank: int, world_size: int) -> None:
        self._indices = indices
        self._seed = seed
        self._start = position + rank * batch_size
        self._stride = world_size * batch_size
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        count = len(self._indices)
        order: NDArray | None = None
        epoch_of_order = -1
        start = self._start
        while True:
            batch = []
            for position in range(start, start + self._batch_size):
                epoch, place = divmod(position, count)
                if order is None or epoch != epoch_of_order:
                    order, epoch_of_order = epoch_order(self._indices, self._seed, epoch), epoch
                batch.append((epoch, int(order[place])))
            yield batch
            start += self._stride


class Rejects:
    """Bad images by key; each is reported once, and too many of them are an error."""

    def __init__(self, max_bad_fraction: float, total: int) -> None:
        self.reasons: dict[str, str] = {}
        self._reported: set[str] = set()
        self._max_bad_fraction = max_bad_fraction
        self.total = total

    def add(self, rejected: dict[str, str], *, report: bool = True) -> None:
        """Add reasons by key; without `report`, another process has reported them."""
        for key, reason in rejected.items():
            self.reasons.setdefault(key, reason)
            if key not in self._reported:
                self._reported.add(key)
                if report:
                    _log.warning("skipped %s: %s", key, reason)

    def check(self) -> None:
        """Raise UserError if the fraction of bad images exceeds the maximum."""
        bad = len(self.reasons)
        if bad > self._max_bad_fraction * self.total:
            first = "; ".join(f"{key}: {reason}" for key, reason in islice(self.reasons.items(), 3))
            raise UserError(
                f"{bad} of {self.total} images ({bad / self.total:.1%}) cannot be used, more than the allowed fraction "
                f"of {self._max_bad_fraction:.1%} (max_bad_fraction)\nthe first: {first}"
            )


class TrainingLoader:
    """Endless, shuffled, resumable micro-batches of one rank.

    A bad image is replaced by another of the data set and reported once; a rank that has met more distinct bad images
    than `max_bad_fraction` of the data set raises a UserError.

    Args:
        source: The images.
        transform: Applied with each sample's own randomness, a function of (seed, epoch, index). With a
            `BucketTransform` the headers of all images are read first, and all images of a step have one size.
        batch_size: Images of one micro-batch.
        seed: Seed >= 0 of order and randomness.
        rank: Rank of this process.
        world_size: Number of processes.
        accumulation: Micro-batches of one step.
        workers: Decoding processes; 0 decodes in this one.
        max_bad_fraction: Maximum fraction of bad images, from 0 to 1.
        indices: The images to use, all of them if None.
        cache_bytes: Size of the decoded images that each worker keeps, for data sets that fit.
        progress: Receives the number of headers that this process has read.
    """

    def __init__(
        self,
        source: Source,
        transform: ImageTransform | BucketTransform,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        workers: int = 0,
        max_bad_fraction: float = 0.01,
        indices: Sequence[int] | None = None,
        cache_bytes: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        check_counts(batch_size=batch_size, accumulation=accumulation)
        _check_common(rank=rank, world_size=world_size, workers=workers, max_bad_fraction=max_bad_fraction, seed=seed)
        self.source = source
        self._indices = chosen_indices(source, indices)
        self._rejects = Rejects(max_bad_fraction, len(self._indices))
        self.buckets: Buckets | None = None
        """The images by their size; None if all have one size."""
        self._builder: BatchBuilder | BucketBuilder
        if isinstance(transform, BucketTransform):
            self.buckets = find_buckets(
                source, self._indices, transform, workers=workers, rank=rank, world_size=world_size, progress=progress
            )
            self._rejects.add(self.buckets.rejected, report=rank == 0)
            self._rejects.check()
            self._builder = BucketBuilder(source, transform, self.buckets, seed=seed, cache_bytes=cache_bytes)
        else:
            self._builder = BatchBuilder(
                source, transform, seed=seed, pool=torch.from_numpy(self._indices), replace_bad=True,
                cache=DecodedCache(cache_bytes),
            )  # fmt: skip
        self._seed = seed
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
        self._accumulation = accumulation
        self._workers = workers

    @property
    def global_batch(self) -> int:
        """Number of images of one step over all processes and micro-batches, G."""
        return self._batch_size * self._world_size * self._accumulation

    @property
    def rejected(self) -> dict[str, str]:
        """Reasons by key of the bad images that this rank has found so far."""
        return self._rejects.reasons

    def first(self, count: int, transform: ImageTransform) -> Tensor:
        """Return the pixel values (B, 3, H, W) of the first good images in the source's order, `count` at most.

        They are decoded in this process, by another transform.

        Raises:
            UserError: No image is good.
        """
        builder = BatchBuilder(self.source, transform, seed=0, pool=torch.from_numpy(self._indices), replace_bad=False)
        return _first_good(builder, count, self._rejects)

    def __len__(self) -> int:
        """Return the number of images of one epoch over all processes."""
        return len(self._indices)

    def epoch(self, position: int) -> float:
        """Return how many times the stream has traversed the data set at `position`."""
        return position / len(self._indices)

    def _sampler(self, position: int) -> Sampler[list[tuple[int, int]]]:
        if self.buckets is None:
            return _StreamSampler(self._indices, self._seed, position, self._batch_size, self._rank, self._world_size)
        step, remainder = divmod(position, self.global_batch)
        assert remainder == 0, "a step of several sizes begins at a multiple of the global batch"
        return BucketSampler(
            self.buckets.members, self._seed, step, batch_size=self._batch_size, accumulation=self._accumulation,
            rank=self._rank, world_size=self._world_size,
        )  # fmt: skip

    def steps(self, position: int = 0) -> Iterator[list[Batch]]:
        """Yield the micro-batches of each step, `accumulation` of them, without end.

        Args:
            position: Number of images of the global stream that are already consumed, any number >= 0; with several
                sizes, a multiple of `global_batch`.

        Raises:
            UserError: Too many images are bad.
        """
        assert position >= 0, position
        sampler = self._sampler(position)
        with signals_held_back():
            batches = iter(data_loader(self._builder, sampler, self._workers, persistent=False))
        try:
            while True:
                step = list(islice(batches, self._accumulation))
                for batch in step:
                    if isinstance(batch, Failure):
                        raise batch.error()
                    self._rejects.add(batch.rejected)
                    self._rejects.check()
                yield step
        finally:
            # An error's traceback holds this frame, and through it the workers, until it is garbage collected; there
            # torch waits five seconds for each of them.
            del batches


class EvaluationLoader:
    """Batches of every good image exactly once, in order; each rank takes a contiguous range without padding.

    Bad images are skipped and collected in `rejected`; too many raise a UserError after the last batch, so that the
    good images are not lost. A batch with bad images is shorter by their number, and the last batch may be shorter.
    With a `WholeTransform`, a batch is the images of one size among `batch_size` consecutive images.

    Args:
        source: The images.
        transform: Applied with each sample's own randomness, a function of (seed, index).
        batch_size: Images of one batch.
        workers: Decoding processes; 0 decodes in this one.
        rank: Rank of this process.
        world_size: Number of processes.
        max_bad_fraction: Maximum fraction of bad images, from 0 to 1, among those that this rank visits.
        indices: The images to use, in this order; all of them if None.
        seed: Seed >= 0 of random transforms and of `Batch.seeds`.
    """

    def __init__(
        self,
        source: Source,
        transform: ImageTransform | WholeTransform,
        *,
        batch_size: int,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        max_bad_fraction: float = 0.01,
        indices: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        check_counts(batch_size=batch_size)
        _check_common(rank=rank, world_size=world_size, workers=workers, max_bad_fraction=max_bad_fraction, seed=seed)
        chosen = chosen_indices(source, indices)
        mine = chosen[len(chosen) * rank // world_size : len(chosen) * (rank + 1) // world_size]
        samples = [(0, int(index)) for index in mine]
        batches = [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]
        builder = BatchBuilder(source, transform, seed=seed, pool=torch.from_numpy(mine), replace_bad=False)
        self._builder = builder
        by_size = BySize(builder) if isinstance(transform, WholeTransform) else builder
        self._loader = data_loader(by_size, batches, workers, persistent=True)
        self._rejects = Rejects(max_bad_fraction, len(mine))

    def first(self, count: int) -> Tensor:
        """Return the pixel values (B, 3, H, W) of the first good images, `count` at most, decoded in this process.

        Raises:
            UserError: No image is good.
        """
        return _first_good(self._builder, count, self._rejects)

    @property
    def rejected(self) -> dict[str, str]:
        """Reasons by key of the bad images found so far."""
        return self._rejects.reasons

    def __len__(self) -> int:
        """Return the number of images that this rank visits, bad ones included."""
        return self._rejects.total

    def __iter__(self) -> Iterator[Batch]:
        with signals_held_back():
            batches = iter(self._loader)
        for found in batches:
            if isinstance(found, Failure):
                raise found.error()
            for batch in found if isinstance(found, list) else [found]:
                self._rejects.add(batch.rejected)
                if len(batch):
                    yield batch
        self._rejects.check()


def _first_good(builder: BatchBuilder, count: int, rejects: Rejects) -> Tensor:
    found: list[Tensor] = []
    for index in builder.pool:
        batch = builder[0, int(index)]
        if isinstance(batch, Failure):
            raise batch.error()
        rejects.add(batch.rejected)
        found += [batch.pixel_values] if len(batch) else []
        if len(found) == count:
            break
    if not found:
        first = next(iter(rejects.reasons.items()))
        raise UserError(f"none of the {len(builder.pool)} images can be used; the first: {': '.join(first)}")
    return torch.cat(found)


def check_counts(**counts: int) -> None:
    """Raise UserError unless each of these options is at least 1."""
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")


def _check_common(*, rank: int, world_size: int, workers: int, max_bad_fraction: float, seed: int) -> None:
    assert 0 <= rank < world_size, (rank, world_size)
    if workers < 0:
        raise UserError(f"workers is {workers}; it must be 0 (decode in the main process) or more")
    if not 0 <= max_bad_fraction <= 1:
        raise UserError(f"max_bad_fraction is {max_bad_fraction}; it must lie between 0 and 1")
    if seed < 0:
        raise UserError(f"seed is {seed}; it must be 0 or more")
