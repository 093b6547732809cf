"""The perceptual distance of the reconstruction: shift-tolerant LPIPS. Source: Ghildyal and Liu, arXiv 2207.13686."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_ae.evaluation import named_metrics
from ldm_ae.evaluation.metrics.interface import CannotScoreError, Setting
from ldm_ae.evaluation.scoring import Scoring
from ldm_ae.outliers.encoded import Encoded
from ldm_ae.outliers.scores.interface import OutlierScore


class PerceptualDistance(OutlierScore):
    """Distance of deep features of the image and its reconstruction."""

    name = "perceptual"
    label = "Perceptual distance"
    explanation = (
        "Distance of deep features (ST-LPIPS over VGG16) of the image and its reconstruction: errors that people see. "
        "Like the reconstruction error, it overlooks what is easy to reconstruct."
    )

    def prepare(self, setting: Setting) -> None:
        """Load the network."""
        self._scoring = Scoring(named_metrics(["perceptual"], perceptual=None), setting)
        self._require()

    def measure(self, images: Encoded) -> Tensor:
        """Return the distance of each image."""
        values = self._scoring.update(images.reconstructions, images.pixel_values)
        self._require()
        return torch.tensor(next(iter(values.values())), dtype=torch.float64)

    def _require(self) -> None:
        for why in self._scoring.skipped.values():
            raise CannotScoreError(why)
