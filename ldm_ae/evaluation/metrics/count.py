"""The number of images that were scored."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ldm_ae.evaluation.metrics.interface import Metric
from ldm_ae.models import Posterior


class ImageCount(Metric):
    """Number of images."""

    name = "count"
    label = "Images"
    explanation = "Number of measured images; Fréchet distances are comparable only at equal counts."
    compares_images = False

    def reset(self) -> None:
        """Reset the count to 0."""
        self._count = 0

    def update(
        self, reconstructions: Tensor, pixel_values: Tensor, posterior: Posterior | None = None
    ) -> Mapping[str, Tensor]:
        """Count a batch."""
        self._count += len(pixel_values)
        return {}

    def compute(self) -> float:
        """Return the count."""
        return self._count
