"""Mutual information gap. Source: Chen et al., Isolating Sources of Disentanglement in VAEs, arXiv 1802.04942."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ldm_ae.representation.disentanglement._discrete import discretized, entropies, mutual_informations
from ldm_ae.representation.disentanglement._rows import checked


def mutual_information_gap(codes: ArrayLike, factors: ArrayLike) -> float:
    """Return the mean over factors of the gap between the two latents with the most information about it.

    The information is divided by the factor's entropy, so that 1 means that one latent determines the factor and no
    other latent has information about it. A single latent has a gap to 0. Codes are discretized to 20 bins, so that a
    factor of more values cannot reach 1.

    Args:
        codes: (N, D).
        factors: (N, F) integers.

    Returns:
        A number in [0, 1]. A random code has a value near 0.

    Raises:
        UserError: The arrays are not valid.
    """
    x, y = checked(codes, factors)
    information = np.sort(mutual_informations(discretized(x), y), axis=0)
    second = information[-2] if len(information) > 1 else 0.0
    return float(np.mean((information[-1] - second) / entropies(y)))
