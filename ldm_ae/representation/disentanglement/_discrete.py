"""Mutual information of discretized codes and factors, from counts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BINS = 20
"""Number of bins of equal width between the smallest and the largest value of a latent, as Locatello et al.,
arXiv 1811.12359, discretize codes."""


def discretized(codes: NDArray[np.float64], bins: int = BINS) -> NDArray[np.int64]:
    """Return codes (N, D) as the numbers of their bins, (N, D) in [0, bins)."""
    low, high = codes.min(axis=0), codes.max(axis=0)
    width = np.where(high > low, (high - low) / bins, 1.0)
    return np.minimum(((codes - low) / width).astype(np.int64), bins - 1)


def entropies(columns: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the entropy in nats of each column of integers (N, F)."""
    return np.array([_entropy(np.bincount(column)) for column in columns.T])


def mutual_informations(codes: NDArray[np.int64], factors: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mutual information (D, F) in nats of each column of codes (N, D) with each of factors (N, F)."""
    found = np.empty((codes.shape[1], factors.shape[1]))
    of_codes, of_factors = entropies(codes), entropies(factors)
    for d, code in enumerate(codes.T):
        for f, factor in enumerate(factors.T):
            joint = np.bincount(code * (factor.max() + 1) + factor)
            found[d, f] = of_codes[d] + of_factors[f] - _entropy(joint)
    return np.maximum(found, 0.0)  # rounding may leave a small negative number


def _entropy(counts: NDArray[np.int64]) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())
