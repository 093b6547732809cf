"""Number of latents that vary with the image; see `ldm_ae.representation.information.active_units`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ldm_ae.evaluation.metrics._of_moments import MomentsMetric
from ldm_ae.evaluation.metrics.interface import JSON, CannotScoreError, ScoreInfo, Scores
from ldm_ae.representation.information.active_units import ACTIVE_VARIANCE
from ldm_ae.representation.information.collapse import Collapse


class ActiveUnits(MomentsMetric):
    """Number of active latents, of all channels and places, with a report of collapse in words."""

    name = "active_units"
    label = "Active units"
    scores: ClassVar[Mapping[str, ScoreInfo]] = {
        "active_units": ScoreInfo(
            label="Active units", group="latents", reliable_images=100,
            explanation=f"Number of latents whose posterior mean has a variance above {ACTIVE_VARIANCE} over images."
        ),
        "active_units_fraction": ScoreInfo(
            label="Active units, fraction", group="latents", reliable_images=100,
            explanation="The same, divided by the number of latents; below 1, capacity is not used."
        ),
    }  # fmt: skip

    def reset(self) -> None:
        """Discard all images."""
        super().reset()
        self._images = 0
        self._first = self._sum = self._squares = self._kl = torch.zeros((), dtype=torch.float64)

    def add(self, means: Tensor, log_variances: Tensor) -> None:
        """Add the sums of a batch, of means from the first image's on, so that a large offset costs no digits."""
        mean, log_variance = means.double(), log_variances.double()
        if self._images == 0:
            self._first = mean[0]
        self._images += len(mean)
        self._sum = self._sum + (mean - self._first).sum(dim=0)
        self._squares = self._squares + (mean - self._first).square().sum(dim=0)
        self._kl = self._kl + 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=0)

    def compute(self) -> Scores:
        """Return the count and the fraction.

        Raises:
            CannotScoreError: There is only one image.
        """
        if self._images < 2:
            raise CannotScoreError(f"{self.label} needs at least 2 images")
        found = self._collapse()
        count = int(found.active.sum())
        return {"active_units": count, "active_units_fraction": count / len(found.active)}

    def details(self) -> Mapping[str, JSON]:
        """Return the report in words."""
        return {"report": " ".join(self._collapse().lines)}

    def _collapse(self) -> Collapse:
        variance = self._squares / self._images - (self._sum / self._images).square()
        return Collapse(variance > ACTIVE_VARIANCE, self._kl / self._images)
