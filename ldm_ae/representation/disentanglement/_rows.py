"""Codes and factors of images as arrays, and images that share the value of a factor."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ldm_ae.core.errors import UserError
from ldm_ae.representation.information.active_units import ACTIVE_VARIANCE


def checked(codes: ArrayLike, factors: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return codes (N, D) float64 and factors (N, F) int64, numbered 0, 1, ... without gaps.

    Raises:
        UserError: The shapes do not match, codes are not finite, factors are not integers, or there are fewer than two
            factors with at least two values.
    """
    x, y = np.asarray(codes, dtype=np.float64), np.asarray(factors)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or not x.size:
        raise UserError(f"codes must be (N, D) and factors (N, F) of the same N > 0, got {x.shape} and {y.shape}")
    if not np.isfinite(x).all():
        raise UserError("codes must be finite numbers")
    if not np.issubdtype(y.dtype, np.integer):
        raise UserError(f"factors must be integers that number their values, got {y.dtype}")
    columns = [np.unique(column, return_inverse=True)[1] for column in y.T]
    varied = [column for column in columns if column.max() > 0]
    if len(varied) < 2:
        raise UserError(f"disentanglement needs at least 2 factors with different values, got {len(varied)}")
    return x, np.stack(varied, axis=1).astype(np.int64)


def active(codes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the columns of codes (N, D) whose variance is above that of an inactive unit; all if none is."""
    kept = codes.var(axis=0) > ACTIVE_VARIANCE
    return codes[:, kept] if kept.any() else codes


class SameFactor:
    """Random images that share the value of one factor.

    Args:
        factors: (N, F) int64.
        generator: Source of the draws.
    """

    def __init__(self, factors: NDArray[np.int64], generator: np.random.Generator):
        self._generator = generator
        self._orders = [column.argsort(kind="stable") for column in factors.T]
        self._counts = [np.bincount(column) for column in factors.T]
        self._starts = [counts.cumsum() - counts for counts in self._counts]

    def values(self, factor: int, count: int) -> NDArray[np.int64]:
        """Return values (count,) of a factor, each value equally likely."""
        return self._generator.integers(len(self._counts[factor]), size=count)

    def rows(self, factor: int, values: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """Return rows (V, count) of images that have each of these values (V,), drawn with replacement."""
        drawn = self._generator.integers(self._counts[factor][values], size=(count, len(values))).T
        return self._orders[factor][self._starts[factor][values, None] + drawn]
