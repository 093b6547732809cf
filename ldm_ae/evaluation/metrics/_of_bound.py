"""The base of metrics that are bounds on log p(x)."""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.evaluation.metrics._of_model import ModelMetric
from ldm_ae.evaluation.metrics.interface import CannotScoreError, Setting
from ldm_ae.models import Autoencoder
from ldm_ae.representation.bound.densities import bits_per_dimension, has_levels, require_bound


class BoundMetric(ModelMetric):
    """Base of bounds; the score `name` is in nats for each image, `name`_bits_per_dimension in bits for each value.

    The draws of an image depend on its position in the data set alone.
    """

    def prepare(self, setting: Setting) -> None:
        """Keep the model.

        Raises:
            CannotScoreError: The model has no likelihood or no Gaussian posteriors.
        """
        super().prepare(setting)
        if setting.model is not None:
            try:
                require_bound(setting.model)
            except UserError as error:
                raise CannotScoreError(str(error)) from None

    def reset(self) -> None:
        """Discard all images."""
        super().reset()
        self._images = 0

    def per_image(self, model: Autoencoder, latents: Tensor, pixel_values: Tensor) -> dict[str, Tensor]:
        """Return the bound of each image in nats and, where the images have levels, in bits per dimension, (B,)."""
        seeds = torch.arange(self._images, self._images + len(pixel_values))
        self._images += len(pixel_values)
        nats = self.bound(model, pixel_values, seeds)
        if not has_levels(model):
            return {self.name: nats}
        return {self.name: nats, f"{self.name}_bits_per_dimension": bits_per_dimension(model, nats, pixel_values)}

    @abc.abstractmethod
    def bound(self, model: Autoencoder, pixel_values: Tensor, seeds: Tensor) -> Tensor:
        """Return the bound (B,) in nats of images (B, C, H, W); `seeds` (B,) are those of the images' draws."""
