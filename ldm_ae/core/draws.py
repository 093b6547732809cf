"""Random numbers for the samples of a batch, each from a seed of its own."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from ldm_ae.core.seeding import derive_seed

# Purposes of draws: unrelated streams of the same seeds.
REGULARIZER, AUGMENTATION, VIEW, FURTHER_VIEW = "regularizer", "augmentation", "view", "further view"


class Draws:
    """A source of random numbers in which every sample has its own generator.

    A row depends only on the seed of its sample, the stream and the earlier draws, not on the other samples of the
    batch, the process or the device. Gradient accumulation, several processes and a resumed run therefore draw the same
    numbers.

    Args:
        seeds: One seed, at least 0, for each of B samples.
        stream: Purpose of the numbers; numbers of different streams are independent.
        step_seed: A seed that all samples of an optimization step have in common, in all its micro-batches and
            processes.
    """

    def __init__(self, seeds: Sequence[int], stream: str, step_seed: int = 0):
        self._seeds = seeds
        self._stream = stream
        self._step_seed = step_seed
        self._generators: list[torch.Generator] | None = None

    def __len__(self) -> int:
        return len(self._seeds)

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers, (B, *shape) float32 on the CPU."""
        values = torch.empty(len(self), *shape)
        for row, generator in zip(values, self._all(), strict=True):
            row.normal_(generator=generator)
        return values

    def uniform(self, *shape: int) -> Tensor:
        """Return numbers in [0, 1), (B, *shape) float32 on the CPU."""
        values = torch.empty(len(self), *shape)
        for row, generator in zip(values, self._all(), strict=True):
            row.uniform_(generator=generator)
        return values

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Return integers in [low, high), (B, *shape) int64 on the CPU."""
        values = torch.empty(len(self), *shape, dtype=torch.int64)
        for row, generator in zip(values, self._all(), strict=True):
            row.random_(low, high, generator=generator)
        return values

    def of_step(self, name: str) -> random.Random:
        """Return a generator for what all samples of the step have in common, such as the size of their images.

        Every call with the same `name` returns the generator at its start. It is Python's: its numbers are known where
        tensors have no values, as in `dry_run`.
        """
        return random.Random(derive_seed(self._stream, "step", name, self._step_seed))

    def _all(self) -> list[torch.Generator]:
        if self._generators is None:
            self._generators = [torch.Generator().manual_seed(derive_seed(self._stream, seed)) for seed in self._seeds]
        return self._generators
