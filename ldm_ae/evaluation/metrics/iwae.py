"""The importance-weighted bound; see `ldm_ae.representation.bound.iwae`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from ldm_ae.evaluation.metrics._of_bound import BoundMetric
from ldm_ae.evaluation.metrics.interface import ScoreInfo
from ldm_ae.models import Autoencoder
from ldm_ae.representation.bound.iwae import iwae

K = 100
"""Number of draws of each posterior."""


class ImportanceWeightedBound(BoundMetric):
    """Mean importance-weighted bound of the images with 100 draws."""

    name = "iwae"
    label = "IWAE bound"
    group = "rate"
    scores: ClassVar[Mapping[str, ScoreInfo]] = {
        "iwae": ScoreInfo(
            label="IWAE bound", direction="higher", unit="nats", decimals=1, group="rate",
            explanation=f"Lower bound on log p(x) of an image with {K} draws, tighter than the ELBO."
        ),
        "iwae_bits_per_dimension": ScoreInfo(
            label="IWAE bound, bits per dimension", direction="lower", group="rate",
            explanation="Upper bound on -log2 p(x), divided by the number of pixel values."
        ),
    }  # fmt: skip

    def bound(self, model: Autoencoder, pixel_values: Tensor, seeds: Tensor) -> Tensor:
        """Return the bound (B,) in nats."""
        return iwae(model, pixel_values, k=K, seeds=seeds, chunk=K)

    def protocol(self) -> dict[str, object]:
        """Return the number of draws."""
        return {"iwae": {"draws": K, "seeds": "position of the image in the data set"}}
