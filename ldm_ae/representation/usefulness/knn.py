"""Classification by nearest neighbours. Source: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance
Discrimination, arXiv 1805.01978, with equal votes."""

from __future__ import annotations

from numpy.typing import ArrayLike

from ldm_ae.representation._packages import require_sklearn

NEIGHBOURS, FOLDS = 10, 5


def knn_accuracy(features: ArrayLike, labels: ArrayLike, *, neighbours: int = NEIGHBOURS, seed: int = 0) -> float:
    """Return the accuracy of a vote among the nearest neighbours by Euclidean distance, with five folds.

    Features are taken as they are: dividing each by its standard deviation would give latents that vary only by chance
    the same weight as the others.

    Args:
        features: (N, D).
        labels: (N,) integers, at least 5 of each class.
        neighbours: Number of neighbours that vote.
        seed: Seed of the folds.

    Returns:
        Accuracy over all images, each classified by the images outside its fold.

    Raises:
        UserError: scikit-learn is missing.
    """
    require_sklearn("k-NN")
    import numpy as np
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.neighbors import KNeighborsClassifier

    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    predicted = cross_val_predict(KNeighborsClassifier(neighbours), np.asarray(features), np.asarray(labels), cv=folds)
    return float(np.mean(predicted == np.asarray(labels)))
