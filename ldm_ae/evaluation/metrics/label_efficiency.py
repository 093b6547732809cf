"""Accuracy by the number of labels; see `ldm_ae.representation.usefulness.label_efficiency`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from ldm_ae.evaluation.metrics._labelled_latents import FEATURES, LabelledLatentsMetric
from ldm_ae.evaluation.metrics.interface import JSON, CannotScoreError, ScoreInfo, Scores
from ldm_ae.representation.usefulness.label_efficiency import Efficiency, label_efficiency

NUMBERS = (10, 100, 1000)
"""Numbers of labels; those below the number of classes or above the training images are left out."""
TESTED = 5
"""One image in so many is a test image."""
REPETITIONS = 5


def _key(number: int) -> str:
    return f"label_efficiency_{number}"


class LabelEfficiency(LabelledLatentsMetric):
    """Accuracy of logistic regression on latents with 10, 100 and 1,000 labels."""

    name = "label_efficiency"
    label = "Label efficiency"
    group = "latents"
    explanation = "Accuracy of a linear classifier of latents that is fitted to few labels."
    scores: ClassVar[Mapping[str, ScoreInfo]] = {
        _key(number): ScoreInfo(
            label=f"Accuracy with {number:,} labels", direction="higher",
            explanation=f"Accuracy of a linear classifier of latents that is fitted to {number:,} labels.",
        )
        for number in NUMBERS
    }  # fmt: skip
    folds = TESTED

    def reset(self) -> None:
        """Discard all images."""
        super().reset()
        self._efficiencies: list[Efficiency] = []

    def score(self, features: Tensor, labels: Tensor) -> Scores:
        """Return the mean accuracy for each number of labels.

        Raises:
            CannotScoreError: There are fewer training images than the smallest number that covers the classes.
        """
        from sklearn.model_selection import train_test_split

        x, x_test, y, y_test = train_test_split(
            features.numpy(), labels.numpy(), test_size=1 / TESTED, stratify=labels.numpy(), random_state=0
        )
        classes = len(labels.unique())
        numbers = [number for number in NUMBERS if classes <= number <= len(y) - classes]
        if not numbers:
            raise CannotScoreError(f"{self.label} needs more labelled images, got {len(labels)} of {classes} classes")
        self._efficiencies = label_efficiency(x, y, x_test, y_test, numbers=numbers, repetitions=REPETITIONS)
        return {_key(found.labels): found.accuracy for found in self._efficiencies}

    def details(self) -> Mapping[str, JSON]:
        """Return the standard deviation of each accuracy over the choices of the labels."""
        return {"standard_deviations": {str(found.labels): found.deviation for found in self._efficiencies}}

    def protocol(self) -> dict[str, object]:
        """Return what is classified, and how."""
        return {
            "label_efficiency": {
                "features": f"{FEATURES}; standardized by all training images",
                "classifier": "scikit-learn's LogisticRegression, C = 1",
                "labels": f"chosen in proportion of the classes, the mean of {REPETITIONS} choices",
                "test_images": f"one in {TESTED}, stratified, seed 0",
            }
        }
