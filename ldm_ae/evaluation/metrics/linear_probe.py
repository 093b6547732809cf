"""How well a linear classifier of latents finds the class of an image.

Source: Alain and Bengio, Understanding Intermediate Layers Using Linear Classifier Probes, arXiv 1610.01644.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from ldm_ae.evaluation.metrics._labelled_latents import (
    GRID,
    IMAGES,
    NUMBERS,
    LabelledLatentsMetric,
)
from ldm_ae.evaluation.metrics.interface import JSON, ScoreInfo, Scores

FOLDS = 5
STEPS = 2000
"""Maximum number of iterations of the optimizer."""


class LinearProbe(LabelledLatentsMetric):
    """Accuracy of logistic regression on standardized latents, cross-validated, beside that of the largest class."""

    name = "linear_probe"
    label = "Linear probe"
    group = "latents"
    direction = "higher"
    explanation = "Accuracy of a linear classifier of latents on images that it was not fitted to."
    scores: ClassVar[Mapping[str, ScoreInfo]] = {
        "linear_probe": ScoreInfo(label=label, direction="higher", explanation=explanation),
        "linear_probe_chance": ScoreInfo(
            label="Linear probe, chance",
            explanation="Fraction of the largest class, the accuracy without knowledge of the image.",
        ),
    }
    folds = FOLDS

    def reset(self) -> None:
        """Discard all images."""
        super().reset()
        self._accuracies: list[float] = []
        self._classes = 0

    def score(self, features: Tensor, labels: Tensor) -> Scores:
        """Return the accuracy over all images, each classified by the fit that excludes its fold, and chance."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedKFold, cross_val_predict
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        x, y = features.double().numpy(), labels.numpy()
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=STEPS))
        right = cross_val_predict(probe, x, y, cv=folds) == y
        self._accuracies = [float(right[rows].mean()) for _, rows in folds.split(x, y)]
        counts = labels.unique(return_counts=True)[1]
        self._classes = len(counts)
        return {"linear_probe": float(right.mean()), "linear_probe_chance": int(counts.max()) / len(labels)}

    def details(self) -> Mapping[str, JSON]:
        """Return the number of classes and the accuracy on each fold."""
        return {"classes": self._classes, "accuracies_of_folds": self._accuracies}

    def protocol(self) -> dict[str, object]:
        """Return what is classified, and how."""
        return {
            "linear_probe": {
                "features": f"scaled latents of the posterior's mode, averaged to at most {GRID}x{GRID} places and "
                f"{NUMBERS} numbers, standardized; of the first {IMAGES} labelled images",
                "classifier": f"scikit-learn's LogisticRegression, C = 1, at most {STEPS} iterations",
                "folds": f"{FOLDS}, stratified, shuffled with seed 0; classes of fewer images are not used",
            }
        }
