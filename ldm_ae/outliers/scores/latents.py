"""The distance of latents from those of a data set. Source: Lee et al., arXiv 1807.03888, with one Gaussian for all
images, whose covariance is shrunk as in Ledoit and Wolf, A well-conditioned estimator for large-dimensional covariance
matrices, 2004."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_ae.evaluation.metrics.interface import CannotScoreError
from ldm_ae.outliers.encoded import Encoded
from ldm_ae.outliers.scores.interface import OutlierScore

SMALLEST = 1e-6
"""Smallest standard deviation over places; that of one code everywhere is 0."""


class LatentDistance(OutlierScore):
    """Mahalanobis distance of the means and deviations of latents from the mean of the reference images."""

    name = "latents"
    label = "Distance of latents"
    explanation = (
        "Mahalanobis distance from the mean of the reference images, divided by the root of the number of features: "
        "for each channel, the mean of the latents over places and the logarithm of their standard deviation; of "
        "vectors, the numbers. The reference should have several times as many images as features. The encoder of a "
        "VAE of vectors can map strange images near the mean of its prior, where they look normal."
    )

    def measure(self, images: Encoded) -> Tensor:
        """Return the features of each image."""
        return pooled(images.posterior.mode()).cpu()

    def fit(self, reference: Tensor) -> None:
        """Estimate mean and covariance.

        Raises:
            CannotScoreError: There are too few different reference images.
        """
        self._mean = reference.mean(dim=0)
        covariance = shrunk_covariance(reference)
        if torch.linalg.cholesky_ex(covariance).info:
            raise CannotScoreError("the reference images have too few different latents; give more reference images")
        self._covariance = covariance

    def score(self, measured: Tensor) -> Tensor:
        """Return the distances, divided by the root of the number of features, so that a usual one is about 1."""
        return mahalanobis(measured, self._mean, self._covariance) / len(self._mean) ** 0.5


def pooled(latents: Tensor) -> Tensor:
    """Return features (B, 2C) float64 of latents (B, C, h, w): means over places, and logarithms of deviations from
    them; of vectors (B, C, 1, 1), which have no deviations, the vectors (B, C)."""
    places = latents.flatten(2).double()
    means = places.mean(dim=2)
    if places.shape[2] == 1:
        return means
    deviations = places.std(dim=2, correction=0).clamp(min=SMALLEST)
    return torch.cat([means, deviations.log()], dim=1)


def mahalanobis(rows: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """Return the Mahalanobis distances (N,) of rows (N, D) from a mean (D,) under a covariance (D, D)."""
    offsets = (rows - mean).T
    return (offsets * torch.linalg.solve(covariance, offsets)).sum(dim=0).clamp(min=0).sqrt()


def shrunk_covariance(rows: Tensor) -> Tensor:
    """Return the covariance (D, D) of rows (N, D), shrunk towards a multiple of the identity as Ledoit and Wolf do.

    The weight of the identity minimizes the expected squared error, so that the estimate is invertible for any N above
    1 if rows differ. It is that of `sklearn.covariance.LedoitWolf`.
    """
    count, size = rows.shape
    centred = rows - rows.mean(dim=0)
    covariance = centred.T @ centred / count
    identity = covariance.trace() / size * torch.eye(size, dtype=rows.dtype)
    distance = (covariance - identity).square().sum()
    if not float(distance) > 0:
        return covariance
    noise = (centred.square().sum(dim=1).square().sum() / count - covariance.square().sum()) / count
    weight = (noise / distance).clamp(0, 1)
    return (1 - weight) * covariance + weight * identity
