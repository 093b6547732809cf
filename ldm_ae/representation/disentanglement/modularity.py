"""Modularity. Source: Ridgeway and Mozer, Learning Deep Disentangled Embeddings with the F-Statistic Loss, arXiv
1802.05312."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ldm_ae.representation.disentanglement._discrete import discretized, mutual_informations
from ldm_ae.representation.disentanglement._rows import active, checked


def modularity(codes: ArrayLike, factors: ArrayLike) -> float:
    """Return the mean over latents of 1 minus the deviation from a latent that has information about one factor only.

    The deviation of a latent is the sum of its squared information about the factors other than its largest, divided
    by the largest squared information times F - 1. Modularity does not ask that a factor has only one latent. Latents
    whose variance is at most 0.01, and those without any information, do not count.

    Args:
        codes: (N, D).
        factors: (N, F) integers.

    Returns:
        A number in [0, 1]; 0 if every latent has the same information about all factors, or none.

    Raises:
        UserError: The arrays are not valid.
    """
    x, y = checked(codes, factors)
    squares = mutual_informations(discretized(active(x)), y) ** 2
    largest = squares.max(axis=1)
    squares, largest = squares[largest > 0], largest[largest > 0]
    if not len(largest):
        return 0.0
    return float(np.mean(1 - (squares.sum(axis=1) - largest) / (largest * (y.shape[1] - 1))))
