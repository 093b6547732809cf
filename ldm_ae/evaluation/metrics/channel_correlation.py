"""Whether the channels of latents repeat each other.

The effective number of channels is the effective rank of Roy and Vetterli, The Effective Rank: A Measure of Effective
Dimensionality, EUSIPCO 2007, definition 1, of the channels' covariance: exp(H) of the entropy H of its eigenvalues,
divided by their sum. It is C for channels of equal variance without correlation, and 1 for copies of one channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ldm_ae.evaluation.metrics._of_model import ModelMetric
from ldm_ae.evaluation.metrics.frechet import FeatureStatistics
from ldm_ae.evaluation.metrics.interface import JSON, CannotScoreError, ScoreInfo, Scores
from ldm_ae.models import Autoencoder

LARGEST_MATRIX = 128
"""Number of channels above which the details have no matrix of correlations."""


class ChannelCorrelation(ModelMetric):
    """Mean absolute correlation of two channels, and the effective number of channels.

    Both are of the posterior's mode, scaled as for a diffusion model, over all positions of all images.
    """

    name = "channel_correlation"
    label = "Channel correlation"
    group = "latents"
    explanation = "Correlation between the channels of latents."
    scores: ClassVar[Mapping[str, ScoreInfo]] = {
        "channel_correlation": ScoreInfo(
            label="Channel correlation",
            explanation="Mean absolute correlation of two channels over all positions: 0 unrelated, 1 copies.",
        ),
        "effective_channels": ScoreInfo(
            label="Effective channels",
            explanation="Number of uncorrelated channels of equal variance with the same entropy of variances.",
        ),
    }

    def reset(self) -> None:
        """Discard all images."""
        super().reset()
        self._statistics: FeatureStatistics | None = None

    def per_image(self, model: Autoencoder, latents: Tensor, pixel_values: Tensor) -> dict[str, Tensor]:
        """Add the latents of a batch; single images have no value."""
        scaled = model.scale(latents)
        if self._statistics is None:
            self._statistics = FeatureStatistics(scaled.shape[1])
        self._statistics.update(scaled.movedim(1, -1).flatten(0, -2))
        return {}

    def covariance(self) -> Tensor:
        """Return the covariance of the scaled channels, (C, C) float64.

        Raises:
            CannotScoreError: The latents are constant, or there is one element of each channel.
        """
        found = self._statistics
        if found is None or found.count < 2 or not found.covariance.any():
            raise CannotScoreError(f"{self.label} needs latents that are not constant")
        return found.covariance

    def compute(self) -> Scores:
        """Return both numbers; only the second for latents of one channel."""
        covariance = self.covariance()
        values = torch.linalg.eigvalsh(covariance).clamp(min=0.0)
        found = {"effective_channels": float(torch.special.entr(values / values.sum()).sum().exp())}
        if (channels := len(covariance)) > 1:
            off_diagonal = correlations(covariance).fill_diagonal_(0.0).abs().sum()
            found["channel_correlation"] = float(off_diagonal) / (channels * (channels - 1))
        return found

    def details(self) -> Mapping[str, JSON]:
        """Return the correlations, C rows of C numbers, where C is at most `LARGEST_MATRIX`."""
        covariance = self.covariance()
        if len(covariance) > LARGEST_MATRIX:
            return {}
        return {"correlations": [[round(value, 4) for value in row] for row in correlations(covariance).tolist()]}


def correlations(covariance: Tensor) -> Tensor:
    """Return the correlations (C, C) of a covariance; a constant channel has none with others, 0."""
    deviations = covariance.diagonal().sqrt()
    found = covariance / torch.outer(deviations, deviations)
    return torch.where(found.isfinite(), found, 0.0).clamp(-1.0, 1.0).fill_diagonal_(1.0)
