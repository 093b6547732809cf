"""Accuracy by the number of labels. Source: Kingma et al., Semi-supervised Learning with Deep Generative Models, arXiv
1406.5298, model M1: a classifier of latents, where only some images have labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from numpy.typing import ArrayLike

from ldm_ae.core.errors import UserError
from ldm_ae.representation._packages import require_sklearn


class Efficiency(NamedTuple):
    """Accuracy with one number of labels."""

    labels: int
    accuracy: float
    """Mean over the repetitions."""
    deviation: float
    """Standard deviation over the repetitions."""


def label_efficiency(
    features: ArrayLike, labels: ArrayLike, test_features: ArrayLike, test_labels: ArrayLike, *,
    numbers: Sequence[int] = (100, 1000, 10_000), repetitions: int = 5, seed: int = 0,
) -> list[Efficiency]:  # fmt: skip
    """Return the accuracy on test images of logistic regressions that are fitted to some of the labels.

    Features are standardized by all training images, for which no labels are needed. The images with labels have the
    classes in proportion.

    Args:
        features: (N, D) of the training images.
        labels: (N,) integers.
        test_features: (M, D).
        test_labels: (M,) integers.
        numbers: Numbers of labels, each at least the number of classes; those above N count as N, once.
        repetitions: Number of random choices of the images with labels. All N labels need one.
        seed: Seed of the choices.

    Raises:
        UserError: scikit-learn is missing, or a number is below the number of classes.
    """
    require_sklearn("label efficiency")
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(np.asarray(features, dtype=np.float64))
    x, x_test = (scaler.transform(np.asarray(part, dtype=np.float64)) for part in (features, test_features))
    y, y_test = np.asarray(labels), np.asarray(test_labels)
    classes = len(np.unique(y))
    if min(numbers) < classes:
        raise UserError(f"label efficiency needs a label for each of {classes} classes, got {min(numbers)} labels")
    found = []
    for number in sorted({min(number, len(y)) for number in numbers}):
        accuracies = []
        # The images that are left over must be none or as many as there are classes, to be divided in proportion.
        every = number > len(y) - classes
        for repetition in range(1 if every else repetitions):
            rows = np.arange(len(y))
            if not every:
                rows, _ = train_test_split(rows, train_size=number, stratify=y, random_state=seed + repetition)
            probe = LogisticRegression(max_iter=2000).fit(x[rows], y[rows])
            accuracies.append(probe.score(x_test, y_test))
        count = len(y) if every else number
        found.append(Efficiency(count, float(np.mean(accuracies)), float(np.std(accuracies))))
    return found
