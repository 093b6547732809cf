"""Whether clusters of latents are the classes; see `ldm_ae.representation.usefulness.clusters`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from ldm_ae.evaluation.metrics._labelled_latents import FEATURES, LabelledLatentsMetric
from ldm_ae.evaluation.metrics.interface import ScoreInfo, Scores
from ldm_ae.representation.usefulness.clusters import STARTS, clusterability


class ClusterAgreement(LabelledLatentsMetric):
    """Agreement of k-means over latents with the classes."""

    name = "clusters"
    label = "Clusters"
    group = "latents"
    explanation = "Agreement of clusters of latents, as many as there are classes, with the classes."
    scores: ClassVar[Mapping[str, ScoreInfo]] = {
        "clusters_nmi": ScoreInfo(
            label="Clusters, NMI", direction="higher",
            explanation="Normalized mutual information of clusters of latents and classes; 1 if they are the same."
        ),
        "clusters_ari": ScoreInfo(
            label="Clusters, ARI", direction="higher",
            explanation="Adjusted Rand index of clusters of latents and classes; 0 for random clusters."
        ),
    }  # fmt: skip
    folds = 2

    def score(self, features: Tensor, labels: Tensor) -> Scores:
        """Return both agreements."""
        found = clusterability(features.numpy(), labels.numpy())
        return {"clusters_nmi": found.nmi, "clusters_ari": found.ari}

    def protocol(self) -> dict[str, object]:
        """Return what is clustered, and how."""
        method = f"scikit-learn's KMeans, the best of {STARTS} starts, seed 0, as many clusters as classes"
        return {"clusters": {"features": FEATURES, "method": method}}
