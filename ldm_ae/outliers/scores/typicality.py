"""Distance from the typical set. Source: Nalisnick et al., Detecting Out-of-Distribution Inputs to Deep Generative
Models Using Typicality, arXiv 1906.02994, equation 7 with a single image."""

from __future__ import annotations

from torch import Tensor

from ldm_ae.evaluation.metrics.interface import Setting
from ldm_ae.outliers.encoded import Encoded, likelihood_kind
from ldm_ae.outliers.scores.interface import OutlierScore


class Typicality(OutlierScore):
    """Absolute difference of the negative log-likelihood from its mean over the reference images."""

    name = "typicality"
    label = "Typicality"
    explanation = (
        "Distance of the negative log-likelihood (of the image, or of its codes under the prior) from its mean over "
        "the reference images. It also finds images that are too likely, such as black ones, but not strange images "
        "with the usual likelihood."
    )

    def prepare(self, setting: Setting) -> None:
        """Check that the model has a likelihood."""
        self.unit = likelihood_kind(setting).unit

    def measure(self, images: Encoded) -> Tensor:
        """Return the negative log-likelihood of each image."""
        return images.negative_log_likelihood

    def fit(self, reference: Tensor) -> None:
        """Take the mean over the reference images."""
        self._mean = reference.mean()

    def score(self, measured: Tensor) -> Tensor:
        """Return the distances from the mean."""
        return (measured - self._mean).abs()
