"""Separated attribute predictability. Source: Kumar et al., Variational Inference of Disentangled Latent Concepts from
Unlabeled Observations, arXiv 1711.00848, for categorical factors."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ldm_ae.representation._packages import require_sklearn
from ldm_ae.representation.disentanglement._rows import checked


def sap(codes: ArrayLike, factors: ArrayLike, *, seed: int = 0) -> float:
    """Return the mean over factors of the gap between the two single latents that predict the factor best.

    A prediction puts thresholds on one latent, at most one less than the factor has values, which a decision tree with
    balanced classes finds on half of the images. Its score is the balanced accuracy on the other half, for which
    guessing has 1 / (number of values). A single latent has a gap to this.

    Args:
        codes: (N, D).
        factors: (N, F) integers.
        seed: Seed of the halves.

    Returns:
        A number in [0, 1 - 1 / (number of values)], the mean over the factors; near 0 for a random code.

    Raises:
        UserError: The arrays are not valid, or scikit-learn is missing.
    """
    require_sklearn("SAP")
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.tree import DecisionTreeClassifier

    x, y = checked(codes, factors)
    order = np.random.default_rng(seed).permutation(len(x))
    fit, held_out = order[::2], order[1::2]
    gaps = []
    for factor in y.T:
        values = int(factor.max()) + 1
        scores = [1 / values]
        for latent in x.T[:, :, None]:
            tree = DecisionTreeClassifier(max_leaf_nodes=values, class_weight="balanced", random_state=0)
            predicted = tree.fit(latent[fit], factor[fit]).predict(latent[held_out])
            scores.append(float(balanced_accuracy_score(factor[held_out], predicted)))
        best = np.sort(scores)
        gaps.append(best[-1] - best[-2])
    return float(np.mean(gaps))
