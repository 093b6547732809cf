"""Disentanglement, completeness and informativeness. Source: Eastwood and Williams, A Framework for the Quantitative
Evaluation of Disentangled Representations, ICLR 2018."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ldm_ae.representation._packages import require_sklearn
from ldm_ae.representation.disentanglement._rows import checked

TREES = 10
DEPTHS = (4, 8, 16)
"""Maximum depths of trees, of which the one that predicts best is taken."""


class DCI(NamedTuple):
    """Three numbers in [0, 1] of a representation."""

    disentanglement: float
    """How much each latent serves one factor only, weighted by the latents' importance."""
    completeness: float
    """How much each factor is found in one latent only."""
    informativeness: float
    """Accuracy of the factors' predictions on images that the predictors were not fitted to, the mean over factors."""


def dci(codes: ArrayLike, factors: ArrayLike, *, seed: int = 0) -> DCI:
    """Return the three scores, from random forests that predict each factor of all latents together.

    The importance of a latent for a factor is its decrease of impurity in the forest of that factor. Forests are
    fitted to half of the images; a quarter chooses the depth and the last quarter gives the accuracy.

    Args:
        codes: (N, D).
        factors: (N, F) integers.
        seed: Seed of the parts and the forests.

    Raises:
        UserError: The arrays are not valid, or scikit-learn is missing.
    """
    require_sklearn("DCI")
    from sklearn.ensemble import RandomForestClassifier

    x, y = checked(codes, factors)
    order = np.random.default_rng(seed).permutation(len(x))
    fit, choose, held_out = order[::2], order[1::4], order[3::4]
    importance = np.zeros((x.shape[1], y.shape[1]))
    accuracies = []
    for number, factor in enumerate(y.T):
        # All latents compete at each split: a random subset of them would spread importance over latents that only
        # stand in for the best one.
        forests = [
            RandomForestClassifier(TREES, max_depth=depth, max_features=None, random_state=seed).fit(
                x[fit], factor[fit]
            )
            for depth in DEPTHS
        ]
        best = max(forests, key=lambda forest: forest.score(x[choose], factor[choose]))
        importance[:, number] = best.feature_importances_
        accuracies.append(best.score(x[held_out], factor[held_out]))
    return DCI(*concentrations(importance), informativeness=float(np.mean(accuracies)))


def concentrations(importance: NDArray[np.float64]) -> tuple[float, float]:
    """Return disentanglement and completeness of importances (D, F), which are at least 0.

    Disentanglement is 1 minus the entropy, to the base F, of each latent's importances over the factors, averaged with
    the latents' shares of all importance as weights. Completeness is the same over the latents for each factor, to the
    base D, averaged over the factors.
    """
    total = importance.sum()
    if total == 0:
        return 0.0, 0.0
    of_latents = 1 - _relative_entropy(importance)
    of_factors = 1 - _relative_entropy(importance.T)
    return float(of_latents @ importance.sum(axis=1) / total), float(of_factors.mean())


def _relative_entropy(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the entropy of each row's shares, divided by that of equal shares; 1 for a row of zeros, 0 where there is
    one column."""
    sums = rows.sum(axis=1, keepdims=True)
    shares = np.where(sums > 0, rows / np.where(sums > 0, sums, 1.0), 1 / rows.shape[1])
    if rows.shape[1] == 1:
        return np.zeros(len(rows))
    logs = np.log(np.where(shares > 0, shares, 1.0))
    return -(shares * logs).sum(axis=1) / np.log(rows.shape[1])
