"""Usefulness of latents for classes: neighbours, clusters, few labels, and images generated for a class.

Functions take features (N, D), such as pooled latents, and labels (N,) of integers. They need scikit-learn, except for
the classification accuracy score.
"""

from ldm_ae.representation.usefulness.class_gaussians import ClassGaussians
from ldm_ae.representation.usefulness.classification_accuracy import classification_accuracy_score, classifier_accuracy
from ldm_ae.representation.usefulness.clusters import Clusters, clusterability
from ldm_ae.representation.usefulness.knn import knn_accuracy
from ldm_ae.representation.usefulness.label_efficiency import Efficiency, label_efficiency

__all__ = [
    "ClassGaussians",
    "Clusters",
    "Efficiency",
    "classification_accuracy_score",
    "classifier_accuracy",
    "clusterability",
    "knn_accuracy",
    "label_efficiency",
]
