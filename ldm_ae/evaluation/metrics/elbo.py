"""The evidence lower bound; see `ldm_ae.representation.bound.elbo`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from ldm_ae.evaluation.metrics._of_bound import BoundMetric
from ldm_ae.evaluation.metrics.interface import ScoreInfo
from ldm_ae.models import Autoencoder
from ldm_ae.representation.bound.elbo import elbo

SAMPLES = 8
"""Number of draws of each posterior."""


class EvidenceLowerBound(BoundMetric):
    """Mean evidence lower bound of the images."""

    name = "elbo"
    label = "ELBO"
    group = "rate"
    scores: ClassVar[Mapping[str, ScoreInfo]] = {
        "elbo": ScoreInfo(
            label="ELBO", direction="higher", unit="nats", decimals=1, group="rate",
            explanation="Lower bound on log p(x) of an image: log-likelihood of its reconstruction minus the KL."
        ),
        "elbo_bits_per_dimension": ScoreInfo(
            label="ELBO, bits per dimension", direction="lower", group="rate",
            explanation="Upper bound on -log2 p(x), divided by the number of pixel values."
        ),
    }  # fmt: skip

    def bound(self, model: Autoencoder, pixel_values: Tensor, seeds: Tensor) -> Tensor:
        """Return the bound (B,) in nats."""
        return elbo(model, pixel_values, samples=SAMPLES, seeds=seeds).nats

    def protocol(self) -> dict[str, object]:
        """Return the number of draws."""
        return {"elbo": {"draws": SAMPLES, "seeds": "position of the image in the data set", "kl": "closed form"}}
