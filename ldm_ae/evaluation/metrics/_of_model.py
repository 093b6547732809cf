"""The base of metrics that encode or decode with the model beyond the evaluation's reconstructions."""

from __future__ import annotations

import abc
from collections.abc import Mapping

from torch import Tensor

from ldm_ae.evaluation.metrics.interface import CannotScoreError, MeanMetric, Setting
from ldm_ae.models import Autoencoder, Posterior


class ModelMetric(MeanMetric):
    """Base of metrics of a model and its latents, which do not use the reconstructions."""

    compares_images = False

    def __init__(self) -> None:
        self._model: Autoencoder | None = None
        self.reset()

    def prepare(self, setting: Setting) -> None:
        """Keep the model."""
        self._model = setting.model

    def update(
        self, reconstructions: Tensor, pixel_values: Tensor, posterior: Posterior | None = None
    ) -> Mapping[str, Tensor]:
        """Add a batch.

        Raises:
            CannotScoreError: There is no model, or it cannot be scored on these images.
        """
        if self._model is None or posterior is None:
            raise CannotScoreError(f"{self.label} needs the latents of a model")
        return self.keep(self.per_image(self._model, posterior.mode(), pixel_values))

    @abc.abstractmethod
    def per_image(self, model: Autoencoder, latents: Tensor, pixel_values: Tensor) -> dict[str, Tensor]:
        """Return the values of each image, (B,) by key, for the posterior's mode and the images of a batch."""
