"""The order of the images, and the purposes of the numbers that a loader draws from its seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ldm_ae.core.errors import UserError
from ldm_ae.core.seeding import mix
from ldm_ae.data.sources.interface import Source

# Purposes of numbers: unrelated streams of one seed.
ORDER, TRANSFORM, NOISE, REPLACEMENT, BUCKETS = range(5)


def epoch_order(indices: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """Return `indices` in the order of an epoch: a permutation that is a function of (seed, epoch) and of the set."""
    return indices[np.argsort(mix(seed, ORDER, epoch, indices), kind="stable")]


def chosen_indices(source: Source, indices: Sequence[int] | None) -> NDArray[np.int64]:
    """Return `indices` after checks, or those of the whole source; (N,) with N >= 1."""
    chosen = np.arange(len(source)) if indices is None else np.asarray(indices, dtype=np.int64)
    if len(chosen) == 0:
        raise UserError("there are no images to load")
    assert 0 <= chosen.min() <= chosen.max() < len(source), "an index lies outside of the source"
    assert len(np.unique(chosen)) == len(chosen), "an index is given twice"
    return chosen
