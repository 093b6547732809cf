"""The FactorVAE metric. Source: Kim and Mnih, Disentangling by Factorising, arXiv 1802.05983, section 4."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ldm_ae.representation.disentanglement._rows import SameFactor, active, checked

VOTES = 800
"""Number of votes that the classifier counts, and of as many others on which it is scored."""
BATCH = 64
"""Number of images of a vote."""


def factor_vae_metric(codes: ArrayLike, factors: ArrayLike, *, seed: int = 0) -> float:
    """Return the accuracy of a majority vote from the latent that varies least to the factor that is fixed.

    For each vote, 64 images share the value of one factor. Latents whose variance over all images is at most 0.01 do
    not count; the others are divided by their standard deviation. The index of the latent with the smallest variance
    among the 64 images votes for the factor. The classifier assigns each latent the factor that it votes for most.

    Args:
        codes: (N, D).
        factors: (N, F) integers.
        seed: Seed of the images.

    Returns:
        Accuracy on votes that were not counted, in [0, 1]. A random code has about 1 / F.

    Raises:
        UserError: The arrays are not valid.
    """
    x, y = checked(codes, factors)
    x = active(x)
    deviation = x.std(axis=0)
    x = x / np.where(deviation > 0, deviation, 1.0)
    generator = np.random.default_rng(seed)
    same = SameFactor(y, generator)

    def votes() -> NDArray[np.int64]:
        table = np.zeros((x.shape[1], y.shape[1]), dtype=np.int64)
        for factor in generator.integers(y.shape[1], size=VOTES):
            [rows] = same.rows(factor, same.values(factor, 1), BATCH)
            table[x[rows].var(axis=0).argmin(), factor] += 1
        return table

    assigned = votes().argmax(axis=1)
    scored = votes()
    return float(scored[np.arange(len(assigned)), assigned].sum() / VOTES)
