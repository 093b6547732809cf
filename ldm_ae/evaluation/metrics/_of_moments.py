"""The base of metrics of Gaussian posteriors over all images."""

from __future__ import annotations

import abc
from collections.abc import Mapping

from torch import Tensor

from ldm_ae.evaluation.metrics.interface import CannotScoreError, Metric
from ldm_ae.models import Posterior


class MomentsMetric(Metric):
    """Base of metrics of the means and log-variances of all images' posteriors; `add` gets those of a batch."""

    compares_images = False
    group = "latents"

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Discard all images."""
        self._latents = 0

    def update(
        self, reconstructions: Tensor, pixel_values: Tensor, posterior: Posterior | None = None
    ) -> Mapping[str, Tensor]:
        """Add a batch; single images have no value.

        Raises:
            CannotScoreError: The posteriors are not Gaussian, or images have different numbers of latents.
        """
        moments = None if posterior is None else posterior.moments
        if moments is None:
            raise CannotScoreError(f"{self.label} needs Gaussian posteriors, which the model does not have")
        means, log_variances = (part.flatten(1).cpu() for part in moments.chunk(2, dim=1))
        if self._latents not in (0, means.shape[1]):
            raise CannotScoreError(f"{self.label} needs images of one size")
        self._latents = means.shape[1]
        self.add(means, log_variances)
        return {}

    @abc.abstractmethod
    def add(self, means: Tensor, log_variances: Tensor) -> None:
        """Add means and log-variances (B, D) float32 on the CPU."""
