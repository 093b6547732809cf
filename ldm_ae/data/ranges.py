"""Loading of a source range by range, for work that is divided into ranges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from ldm_ae.data.batches import Batch, BatchBuilder, BySize, Failure, concatenate
from ldm_ae.data.loader import Rejects, check_counts
from ldm_ae.data.sources.interface import Source
from ldm_ae.data.workers import data_loader, signals_held_back
from ldm_ae.images.buckets import BucketTransform, WholeTransform
from ldm_ae.images.transforms import ImageTransform

_WAITING = 8
"""Batches that may wait for more images of their size; without a limit, memory would grow with the number of sizes."""


class RangeLoader:
    """Batches of every good image of some ranges exactly once, of one size each, that never cross the end of a range.

    The batches of a range depend only on its images and `batch_size`. With an `ImageTransform` a batch is `batch_size`
    consecutive images, minus the bad ones. With a `BucketTransform` images wait for others of their size; within a
    size they keep the order of the source. With a `WholeTransform`, whose number of sizes is unlimited, a batch is the
    images of one size among `batch_size` consecutive images. The workers continue from range to range. Bad images are
    skipped and collected in `rejected`.

    Args:
        source: The images.
        transform: A transform without randomness.
        ranges: Ranges of the source, none of them empty, none overlapping.
        batch_size: Images of one batch.
        workers: Decoding processes; 0 decodes in this one.
        max_bad_fraction: Fraction of bad images, from 0 to 1, above which a UserError follows the last batch.
    """

    def __init__(
        self,
        source: Source,
        transform: ImageTransform | BucketTransform | WholeTransform,
        *,
        ranges: Sequence[range],
        batch_size: int,
        workers: int = 0,
        max_bad_fraction: float = 1.0,
    ):
        check_counts(batch_size=batch_size)
        assert not transform.is_random, "what is drawn would depend on the loader"
        self._ranges = ranges
        self._batch_size = batch_size
        self._sizes = transform.sizes if isinstance(transform, BucketTransform) else None
        builder = BatchBuilder(source, transform, seed=0, pool=torch.empty(0), replace_bad=False)
        self._loader = data_loader(BySize(builder), _Chunks(ranges, batch_size), workers, persistent=False)
        self._rejects = Rejects(max_bad_fraction, sum(map(len, ranges)))

    @property
    def rejected(self) -> dict[str, str]:
        """Reasons by key of the bad images found so far."""
        return self._rejects.reasons

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        """Yield the number of a range, and a batch of it."""
        if not self._ranges:
            return
        with signals_held_back():
            chunks = iter(self._loader)
        try:
            for number, indices in enumerate(self._ranges):
                waiting = _Waiting(self._sizes or [], self._batch_size)
                for _ in range(0, len(indices), self._batch_size):
                    batches = next(chunks)
                    if isinstance(batches, Failure):
                        raise batches.error()
                    for batch in batches:
                        self._rejects.add(batch.rejected)
                        whole = [batch] if len(batch) else []
                        yield from ((number, one) for one in (waiting.add(batch) if self._sizes else whole))
                yield from ((number, one) for one in waiting.incomplete())
            self._rejects.check()
        finally:
            del chunks  # for the reason given in TrainingLoader.steps


class _Chunks(Sampler[list[tuple[int, int]]]):
    """(epoch, index) pairs of `batch_size` consecutive images of a range."""

    def __init__(self, ranges: Sequence[range], batch_size: int):
        self._ranges = ranges
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for indices in self._ranges:
            for start in range(0, len(indices), self._batch_size):
                yield [(0, index) for index in indices[start : start + self._batch_size]]


class _Waiting:
    """Images of a range that wait for others of their size."""

    def __init__(self, sizes: Sequence[tuple[int, int]], batch_size: int):
        self._batch_size = batch_size
        self._by_size: dict[tuple[int, int], list[Batch]] = {size: [] for size in sizes}

    def add(self, batch: Batch) -> list[Batch]:
        """Return the batches that are full now and, if too many images wait, all those of the most frequent size."""
        if not len(batch):
            return []
        height, width = batch.pixel_values.shape[-2:]
        ready = self._fill((height, width), batch)
        counts = {size: sum(map(len, found)) for size, found in self._by_size.items()}
        if sum(counts.values()) > _WAITING * self._batch_size:
            ready.append(self._take(max(counts, key=lambda size: counts[size])))
        return ready

    def _fill(self, size: tuple[int, int], batch: Batch) -> list[Batch]:
        self._by_size[size].append(batch)
        ready = []
        while sum(map(len, self._by_size[size])) >= self._batch_size:
            found = self._take(size)
            ready.append(found[: self._batch_size])
            if len(found) > self._batch_size:
                self._by_size[size].append(found[self._batch_size :])
        return ready

    def _take(self, size: tuple[int, int]) -> Batch:
        found, self._by_size[size] = self._by_size[size], []
        return concatenate(found)

    def incomplete(self) -> list[Batch]:
        """Return the images that still wait, a batch for each size."""
        return [self._take(size) for size, found in self._by_size.items() if found]
