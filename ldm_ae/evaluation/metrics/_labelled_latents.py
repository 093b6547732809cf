"""The base of metrics that say what latents tell about the classes of their images."""

from __future__ import annotations

import abc
import importlib.util
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_ae.evaluation.metrics._of_model import ModelMetric
from ldm_ae.evaluation.metrics.interface import CannotScoreError, Scores, Setting
from ldm_ae.models import Autoencoder, Posterior

IMAGES = 4096
"""Number of labelled images that are used: the first ones."""
GRID, NUMBERS = 4, 1024
"""Latents are averaged to at most GRID x GRID places, and so few that they have at most NUMBERS numbers, or to one."""


class LabelledLatentsMetric(ModelMetric):
    """Base of metrics of latents and the labels of their images; `score` gets both.

    The posterior's mode is scaled as for a diffusion model and averaged to a grid (`pooled`).
    """

    folds: int
    """Smallest number of images of a class that is used."""

    def prepare(self, setting: Setting) -> None:
        """Keep the model.

        Raises:
            CannotScoreError: scikit-learn is missing.
        """
        super().prepare(setting)
        if importlib.util.find_spec("sklearn") is None:
            raise CannotScoreError(f"{self.label} needs scikit-learn: pip install 'ldm_ae[offline]'")

    def reset(self) -> None:
        """Discard all images."""
        super().reset()
        self._features: list[Tensor] = []
        self._found: list[Tensor] = []
        self._labels: Tensor | None = None
        self._count = 0

    def take_labels(self, labels: Tensor | None) -> None:
        """Keep the labels of the batch that follows."""
        self._labels = labels

    def update(
        self, reconstructions: Tensor, pixel_values: Tensor, posterior: Posterior | None = None
    ) -> Mapping[str, Tensor]:
        """Add a batch; images without a label are ignored."""
        if self._labels is None:
            raise CannotScoreError(f"{self.label} needs labels of the images, such as a folder for each class")
        return super().update(reconstructions, pixel_values, posterior)

    def per_image(self, model: Autoencoder, latents: Tensor, pixel_values: Tensor) -> dict[str, Tensor]:
        """Add the latents of a batch; single images have no value."""
        assert self._labels is not None
        rows = (self._labels.cpu() >= 0).nonzero().flatten()[: IMAGES - self._count]
        if len(rows):
            self._features.append(pooled(model.scale(latents[rows.to(latents.device)]).float()).cpu())
            self._found.append(self._labels.cpu()[rows])
            self._count += len(rows)
        return {}

    def compute(self) -> Scores:
        """Return the scores of the classes that have enough images.

        Raises:
            CannotScoreError: There are fewer than two.
        """
        if self._found:
            labels = torch.cat(self._found)
            classes, counts = labels.unique(return_counts=True)
            kept = torch.isin(labels, classes[counts >= self.folds])
            if len(labels[kept].unique()) > 1:
                return self.score(torch.cat(self._features)[kept], labels[kept])
        raise CannotScoreError(f"{self.label} needs at least 2 classes with {self.folds} images each")

    @abc.abstractmethod
    def score(self, features: Tensor, labels: Tensor) -> Scores:
        """Return the scores of features (N, D) float32 with labels (N,) int64 of at least two classes, each of which
        has at least `folds` images."""


FEATURES = (
    f"scaled latents of the posterior's mode, averaged to at most {GRID}x{GRID} places and {NUMBERS} numbers; of the "
    f"first {IMAGES} labelled images"
)
"""The features, for protocols."""


def pooled(scaled_latents: Tensor) -> Tensor:
    """Return latents (B, C, h, w) as features (B, C g²): the means over a grid of g x g places. g is at most `GRID` and
    the sides, and such that C g² is at most `NUMBERS`, but at least 1."""
    channels, height, width = scaled_latents.shape[1:]
    side = max(g for g in range(1, GRID + 1) if g == 1 or (g <= min(height, width) and channels * g * g <= NUMBERS))
    return F.adaptive_avg_pool2d(scaled_latents, side).flatten(1)
