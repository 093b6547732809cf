"""Agreement of clusters with classes. Sources: Strehl and Ghosh, Cluster Ensembles, JMLR 3, 2002 (NMI); Hubert and
Arabie, Comparing Partitions, Journal of Classification 2, 1985 (ARI)."""

from __future__ import annotations

from typing import NamedTuple

from numpy.typing import ArrayLike

from ldm_ae.representation._packages import require_sklearn

STARTS = 10
"""Number of starts of k-means, of which the one with the smallest distances counts."""


class Clusters(NamedTuple):
    """Agreement of k-means with the classes."""

    nmi: float
    """Normalized mutual information, in [0, 1]."""
    ari: float
    """Adjusted Rand index: 1 for equal partitions, 0 in expectation for random ones."""


def clusterability(features: ArrayLike, labels: ArrayLike, *, seed: int = 0) -> Clusters:
    """Cluster features by k-means into as many clusters as there are classes, and compare them with the classes.

    Args:
        features: (N, D), taken as they are.
        labels: (N,) integers, not used by k-means except for the number of classes.
        seed: Seed of the starts.

    Raises:
        UserError: scikit-learn is missing.
    """
    require_sklearn("clusterability")
    import numpy as np
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    classes = np.asarray(labels)
    means = KMeans(len(np.unique(classes)), n_init=STARTS, random_state=seed)
    found = means.fit_predict(np.asarray(features, dtype=np.float64))
    return Clusters(float(normalized_mutual_info_score(classes, found)), float(adjusted_rand_score(classes, found)))
