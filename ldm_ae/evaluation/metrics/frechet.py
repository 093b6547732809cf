"""The Fréchet distance between two sets of images, as Gaussians over a network's features.

Source: Heusel et al., GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium, arXiv
1706.08500, equation 6: d² = |m₁ - m₂|² + tr(C₁ + C₂ - 2 (C₁ C₂)^½). Called FID over Inception features, and by no
other name here than the network's over any other. For reconstructions the first set is the images themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError


class FeatureStatistics:
    """Running mean and covariance in float64, the same whatever the split into batches (to float64 rounding).

    Args:
        dim: D, the number of features.
    """

    def __init__(self, dim: int):
        self.count = 0
        """Images seen."""
        self.mean = torch.zeros(dim, dtype=torch.float64)
        """(D,) float64."""
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64)  # sum of outer products of deviations

    def update(self, features: Tensor) -> None:
        """Add a batch (B, D)."""
        features = features.detach().to("cpu", torch.float64)
        mean = features.mean(dim=0)
        deviations = features - mean
        self._merge(len(features), mean, deviations.T @ deviations)

    def merge(self, other: FeatureStatistics) -> None:
        """Add what another process has seen."""
        self._merge(other.count, other.mean, other._scatter)

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if count == 0:
            return
        total = self.count + count
        delta = mean - self.mean
        self._scatter += scatter + torch.outer(delta, delta) * (self.count * count / total)
        self.mean += delta * (count / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """(D, D) float64, unbiased: divided by count - 1."""
        assert self.count > 1
        return self._scatter / (self.count - 1)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """d² of equation 6, at least 0, also where there are fewer images than features.

    The trace of (C₁ C₂)^½ is taken as the sum of the singular values of C₁^½ C₂^½. Unlike a square root of the
    eigenvalues of C₁ C₂ this does not turn rounding errors of 1e-16 into 1e-8, and needs nothing added to the diagonal.

    Raises:
        UserError: fewer than 2 images.
    """
    if min(a.count, b.count) < 2:
        raise UserError(f"a Fréchet distance needs at least 2 images, there is {min(a.count, b.count)}")
    roots = torch.linalg.svdvals(_square_root(a.covariance) @ _square_root(b.covariance))
    spread = a.covariance.trace() + b.covariance.trace() - 2.0 * roots.sum()
    return max(float((a.mean - b.mean).square().sum() + spread), 0.0)


def _square_root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T
