"""An autoencoder for which log p(x) and the posterior are known: z ~ N(0, 1), x = W z + b + sigma e."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm_ae.images.pixels import GREY
from ldm_ae.losses import Gaussian
from ldm_ae.models import Autoencoder, AutoencoderSpec, GaussianPosterior, LatentSpec

SIGMA = 0.3
MIXING = torch.tensor([[0.6, 0.4], [0.1, 0.5], [-0.3, 0.2], [0.4, 0.1]])
"""W: its columns are not orthogonal, so that latents depend on each other in the posterior."""
OFFSET = torch.tensor([0.1, -0.1, 0.0, 0.2])


class LinearGaussian(Autoencoder):
    """Grey images of 2x2 pixels and two latents. The encoder gives the best diagonal Gaussian, whose precisions are the
    diagonal of the posterior's (Bishop, Pattern Recognition and Machine Learning, section 10.1.2), its mean moved by
    `shift`."""

    has_moments = True
    likelihood = Gaussian(scale=SIGMA, learned=False)  # type: ignore[assignment]

    def __init__(self, mixing: Tensor = MIXING, shift: float = 0.0):
        super().__init__()
        self.net = nn.Identity()
        self.mixing, self.shift = mixing, shift
        self.precision = torch.eye(2) + mixing.T @ mixing / SIGMA**2
        self.covariance = self.precision.inverse()

    @property
    def spec(self) -> AutoencoderSpec:
        return AutoencoderSpec(pixels=GREY, latents=LatentSpec(channels=2, downsample_factor=2, scaling_factor=1.0))

    def posterior_mean(self, pixel_values: Tensor) -> Tensor:
        return (pixel_values.flatten(1) - OFFSET) @ self.mixing / SIGMA**2 @ self.covariance

    def encode(self, pixel_values: Tensor) -> GaussianPosterior:
        mean = self.posterior_mean(pixel_values) + self.shift
        log_variance = -self.precision.diagonal().log().expand_as(mean)
        return GaussianPosterior(torch.cat([mean, log_variance], dim=1)[:, :, None, None])

    def decode(self, latents: Tensor) -> Tensor:
        return (latents.flatten(1) @ self.mixing.T + OFFSET).view(-1, 1, 2, 2)

    def log_prob(self, pixel_values: Tensor) -> Tensor:
        covariance = self.mixing @ self.mixing.T + SIGMA**2 * torch.eye(4)
        return torch.distributions.MultivariateNormal(OFFSET, covariance).log_prob(pixel_values.flatten(1))

    def approximation_gap(self) -> float:
        """KL of the best diagonal Gaussian to the posterior."""
        return 0.5 * float(self.precision.diagonal().log().sum() - self.precision.logdet())

    def images(self, count: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        latents = torch.randn(count, 2, 1, 1, generator=generator)
        return self.decode(latents) + SIGMA * torch.randn(count, 1, 2, 2, generator=generator)
