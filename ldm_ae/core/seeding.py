"""Seeds and noise as functions of their purpose, independent of the process and the time at which they are computed.

`mix` and `mix_seed` accept numbers, and arrays of them: the order of a run is the same in all versions of NumPy and
torch, and resuming needs no state. `derive_seed` accepts strings too, such as an image's key. Runs and stores
record results of both, so that neither can replace the other.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def derive_seed(*parts: object) -> int:
    """Return a 63-bit seed that is a function of `parts` alone, which are JSON values."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "little") >> 1


def _scramble(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply SplitMix64's step and finalizer (Steele, Lea, Flood 2014), a bijection that passes randomness tests."""
    with np.errstate(over="ignore"):  # arithmetic is intentionally modulo 2^64
        state = state + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))


def mix(*numbers: int | NDArray[np.int64]) -> NDArray[np.uint64]:
    """Map numbers >= 0 to uint64 that look random; arrays are broadcast, scalars alone give shape ()."""
    state = np.zeros((), np.uint64)
    for number in numbers:
        state = _scramble(state ^ np.asarray(number, np.uint64))
    return state


def mix_seed(*numbers: int) -> int:
    """Return a seed in [0, 2^63) from numbers >= 0."""
    return int(mix(*numbers) >> np.uint64(1))


def seeded_noise(seeds: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return standard normal noise in which each row depends on its own seed alone.

    Args:
        seeds: (B,) int64, e.g. `Batch.seeds`.
        shape: Shape of one row.

    Returns:
        (B, *shape) float32 on the CPU.
    """
    noise = torch.empty((len(seeds), *shape), dtype=torch.float32)
    generator = torch.Generator()
    for row, seed in zip(noise, seeds.tolist(), strict=True):
        generator.manual_seed(seed)
        row.normal_(generator=generator)
    return noise
