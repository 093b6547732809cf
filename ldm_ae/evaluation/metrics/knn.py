"""How well the nearest latents find the class of an image; see `ldm_ae.representation.usefulness.knn`."""

from __future__ import annotations

from torch import Tensor

from ldm_ae.evaluation.metrics._labelled_latents import FEATURES, LabelledLatentsMetric
from ldm_ae.evaluation.metrics.interface import Scores
from ldm_ae.representation.usefulness.knn import FOLDS, NEIGHBOURS, knn_accuracy


class KNN(LabelledLatentsMetric):
    """Accuracy of a vote among the nearest latents, cross-validated."""

    name = "knn"
    label = "k-NN"
    group = "latents"
    direction = "higher"
    explanation = "Accuracy of the class that most of the 10 nearest latents have."
    folds = max(FOLDS, NEIGHBOURS)

    def score(self, features: Tensor, labels: Tensor) -> Scores:
        """Return the accuracy over all images."""
        return {self.name: knn_accuracy(features.numpy(), labels.numpy())}

    def protocol(self) -> dict[str, object]:
        """Return what is classified, and how."""
        return {
            "knn": {
                "features": FEATURES,
                "classifier": f"majority of {NEIGHBOURS} neighbours by Euclidean distance",
                "folds": f"{FOLDS}, stratified, shuffled with seed 0; classes of fewer than {NEIGHBOURS} images "
                "are not used",
            }
        }
