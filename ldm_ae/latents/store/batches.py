"""Batches of a store with several resolutions; each batch has one resolution."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from ldm_ae.core.errors import UserError
from ldm_ae.data import epoch_order
from ldm_ae.latents.store.reader import LatentDataset


def endless(loader: DataLoader[Any], data: LatentDataset) -> Iterator[Any]:
    """Yield a loader's batches over `data`, epoch after epoch; each epoch draws other samples and mirror images."""
    for epoch in itertools.count():
        data.set_epoch(epoch)
        yield from loader


class BucketBatchSampler(Sampler[list[int]]):
    """Every image of a data set once in an epoch, in batches of one resolution.

        data = LatentDataset("STORE")
        sampler = BucketBatchSampler(data, 64, rank=rank, world_size=world_size)
        loader = DataLoader(data, batch_sampler=sampler, num_workers=4)
        for epoch in range(epochs):
            sampler.set_epoch(epoch)
            for batch in loader: ...

    The order is a function of seed and epoch alone: images are shuffled within their resolution, and then the batches
    are shuffled. Resolutions appear in proportion to their images; the last batch of each is smaller.

    With several processes each makes its own sampler with the same seed. All get the same number of batches, and in
    each step all have batches of the same resolution, and of the same size unless it is the last one of that
    resolution: its images are distributed so that the sizes differ by one at most. Nothing is repeated to fill a batch.
    Accelerate's `prepare` would distribute the batches again and repeat some: do not pass such a loader to it.

    Args:
        data: A data set with any number of resolutions.
        batch_size: Images of one batch of one process.
        shuffle: If false, each resolution is in the order of the data set, one after the other.
        seed: Seed of the order, >= 0.
        drop_last: Drop the smaller last batches, with other images in each epoch.
        rank: Rank of this process.
        world_size: Number of processes.

    Raises:
        UserError: A number is not valid for images, processes or a seed; or a resolution has so few images that
            some process would get none in its last step, and `drop_last` is off.
    """

    def __init__(
        self,
        data: LatentDataset,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ):
        if batch_size < 1 or seed < 0 or not 0 <= rank < world_size:
            raise UserError(
                f"batch_size {batch_size}, seed {seed}, rank {rank} of {world_size} is not valid: a batch has at least "
                "one image, a seed is 0 or more, ranks count from 0"
            )
        self.batch_size = batch_size
        self.drop_last = drop_last
        self._shuffle = shuffle
        self._seed = seed
        self._rank, self._world_size = rank, world_size
        self._epoch = 0
        self._buckets: list[NDArray[np.int64]] = []
        self._steps: list[NDArray[np.int64]] = []  # for each bucket, the ends of the steps of all processes
        for name, positions in data.buckets().items():
            ends = self._ends(len(positions))
            smallest = int(np.diff(ends, prepend=0).min(initial=world_size))
            if smallest < world_size:
                raise UserError(
                    f"{data.store.path} has {len(positions)} images of {name}, which leaves {smallest} for a step of "
                    f"{world_size} processes; use drop_last, or fewer processes"
                )
            self._buckets.append(positions)
            self._steps.append(ends)

    def set_epoch(self, epoch: int) -> None:
        """Change the order to that of this epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches of this process in an epoch."""
        return sum(map(len, self._steps))

    def __iter__(self) -> Iterator[list[int]]:
        buckets, steps = self._buckets, self._order()
        if self._shuffle:
            buckets = [epoch_order(positions, self._seed, self._epoch) for positions in buckets]
        for bucket, step in steps:
            ends = self._steps[bucket]
            images = buckets[bucket][ends[step - 1] if step else 0 : ends[step]]
            start, end = (len(images) * rank // self._world_size for rank in (self._rank, self._rank + 1))
            yield images[start:end].tolist()

    def _order(self) -> list[tuple[int, int]]:
        """Return (bucket, its step) in the order of this epoch."""
        steps = [(bucket, step) for bucket, ends in enumerate(self._steps) for step in range(len(ends))]
        if not self._shuffle:
            return steps
        return [steps[i] for i in epoch_order(np.arange(len(steps)), self._seed, self._epoch)]

    def _ends(self, images: int) -> NDArray[np.int64]:
        """Return where each step ends among a bucket's images; the processes' batches of one step are consecutive."""
        together = self.batch_size * self._world_size
        ends = np.arange(together, images + 1, together)
        remainder = images % together
        if remainder and not self.drop_last:
            if 0 < remainder < self._world_size and len(ends):  # The last two steps divide too small a remainder.
                ends[-1] -= (together - remainder) // 2
            ends = np.append(ends, images)
        return ends
