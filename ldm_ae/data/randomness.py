"""Order and randomness as functions of numbers, so that they do not depend on who computes them, or when.

Everything comes from one mixing function over integers, not from a generator's stream: the order of a run stays the
same whatever the versions of NumPy and torch, and needs no state to resume.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.data.sources.interface import Source

# What a number is for: streams of one seed that must not be related.
ORDER, TRANSFORM, NOISE, REPLACEMENT = range(4)


def _scramble(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's step and finalizer (Steele, Lea, Flood 2014): a bijection whose output passes randomness tests."""
    with np.errstate(over="ignore"):  # arithmetic is modulo 2^64 on purpose
        state = state + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))


def mix(*numbers: int | NDArray[np.int64]) -> NDArray[np.uint64]:
    """Numbers >= 0 to uint64 that look random; arrays are broadcast, all scalars give shape ()."""
    state = np.zeros((), np.uint64)
    for number in numbers:
        state = _scramble(state ^ np.asarray(number, np.uint64))
    return state


def derived_seed(*numbers: int) -> int:
    """A seed in [0, 2^63) from numbers >= 0."""
    return int(mix(*numbers) >> np.uint64(1))


def epoch_order(indices: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """`indices` in the order of an epoch: a permutation that is a function of (seed, epoch) and of the set."""
    return indices[np.argsort(mix(seed, ORDER, epoch, indices), kind="stable")]


def seeded_noise(seeds: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise of which each row depends on its own seed alone.

    Args:
        seeds: (B,) int64, e.g. `Batch.seeds`.
        shape: of one row.

    Returns:
        (B, *shape) float32 on the CPU.
    """
    noise = torch.empty((len(seeds), *shape), dtype=torch.float32)
    generator = torch.Generator()
    for row, seed in zip(noise, seeds.tolist(), strict=True):
        generator.manual_seed(seed)
        row.normal_(generator=generator)
    return noise


def chosen_indices(source: Source, indices: Sequence[int] | None) -> NDArray[np.int64]:
    """`indices` checked, or all of the source; (N,) with N >= 1."""
    chosen = np.arange(len(source)) if indices is None else np.asarray(indices, dtype=np.int64)
    if len(chosen) == 0:
        raise UserError("there are no images to load")
    assert 0 <= chosen.min() <= chosen.max() < len(source), "an index lies outside of the source"
    assert len(np.unique(chosen)) == len(chosen), "an index is given twice"
    return chosen
