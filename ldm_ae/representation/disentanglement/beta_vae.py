"""The BetaVAE metric. Source: Higgins et al., beta-VAE: Learning Basic Visual Concepts with a Constrained Variational
Framework, ICLR 2017, section 3."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ldm_ae.representation._packages import require_sklearn
from ldm_ae.representation.disentanglement._rows import SameFactor, checked

POINTS = 2000
"""Number of points that the classifier is fitted to, and of as many others on which it is scored."""
PAIRS = 32
"""Number of pairs of images of a point."""


def beta_vae_metric(codes: ArrayLike, factors: ArrayLike, *, seed: int = 0) -> float:
    """Return the accuracy with which a linear classifier finds the factor that pairs of images share.

    A point is the mean absolute difference of the codes of 32 pairs; both images of a pair have the same value of one
    factor. Logistic regression on standardized points predicts that factor.

    Args:
        codes: (N, D).
        factors: (N, F) integers.
        seed: Seed of the pairs.

    Returns:
        Accuracy on points that the classifier was not fitted to, in [0, 1]. A random code has about 1 / F.

    Raises:
        UserError: The arrays are not valid, or scikit-learn is missing.
    """
    require_sklearn("the BetaVAE metric")
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = checked(codes, factors)
    generator = np.random.default_rng(seed)
    same = SameFactor(y, generator)
    chosen = generator.integers(y.shape[1], size=2 * POINTS)
    points = np.empty((2 * POINTS, x.shape[1]))
    for point, factor in enumerate(chosen):
        rows = same.rows(factor, same.values(factor, PAIRS), 2)
        points[point] = np.abs(x[rows[:, 0]] - x[rows[:, 1]]).mean(axis=0)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(points[:POINTS], chosen[:POINTS])
    return float(classifier.score(points[POINTS:], chosen[POINTS:]))
