"""The posterior distributions of latents that encoders return.

The KL term is equation 10 of Kingma and Welling, Auto-Encoding Variational Bayes, arXiv 1312.6114, with a standard
normal prior.
"""

from __future__ import annotations

import abc
import math

import torch
from torch import Tensor

from ldm_ae.quantizers import Quantized

NATS_TO_BITS = 1.0 / math.log(2.0)


class Posterior(abc.ABC):
    """The distribution of latents that an encoder returns for a batch of images."""

    moments: Tensor | None = None
    """Mean and log-variance (clamped to [-30, 20]) on channels, (B, 2C, h, w) float32, if Gaussian."""
    indices: Tensor | None = None
    """Codebook entries (B, h, w) int64, if discrete; (B, Q, h, w) with Q levels of residual quantization, or maps
    packed to Q codes at each place (`LatentSpec.codebook_maps`)."""

    @abc.abstractmethod
    def sample(self, generator: torch.Generator | None = None, *, noise: Tensor | None = None) -> Tensor:
        """Draw one sample, (B, C, h, w). `noise`, standard normal of that shape, replaces the generator's."""

    @abc.abstractmethod
    def mode(self) -> Tensor:
        """Return the most likely latents, (B, C, h, w)."""

    @abc.abstractmethod
    def regularization(self) -> dict[str, Tensor]:
        """Return named terms (kl, commitment, ...), (B,) float32, summed over an image's latents; entropies in nats."""

    @abc.abstractmethod
    def rate(self) -> Tensor | None:
        """Return the bits per image, (B,) float32, or None where no rate is defined."""


class GaussianPosterior(Posterior):
    """A diagonal Gaussian over latents. All arithmetic is float32, for every dtype of the encoder.

    Args:
        moments: (B, 2C, h, w), mean and log-variance on channels; the log-variance is clamped to [-30, 20].
    """

    def __init__(self, moments: Tensor):
        mean, log_variance = moments.float().chunk(2, dim=1)
        self.mean = mean
        self.log_variance = log_variance.clamp(-30.0, 20.0)

    @property
    def moments(self) -> Tensor:  # type: ignore[override]
        return torch.cat([self.mean, self.log_variance], dim=1)

    def sample(self, generator: torch.Generator | None = None, *, noise: Tensor | None = None) -> Tensor:
        if noise is None:
            # Drawn on the generator's device, so that a CPU generator gives the same draw on every device.
            device = generator.device if generator is not None else self.mean.device
            noise = torch.randn(self.mean.shape, generator=generator, device=device)
        return self.mean + torch.exp(0.5 * self.log_variance) * noise.to(self.mean)

    def mode(self) -> Tensor:
        return self.mean

    def regularization(self) -> dict[str, Tensor]:
        """Return `kl`: KL(q(z|x) || N(0, 1)) in nats, summed over an image's latents."""
        return {"kl": self.kl_map().sum(dim=(1, 2, 3))}

    def kl_map(self) -> Tensor:
        """Return the KL to N(0, 1) of each latent element in nats, (B, C, h, w)."""
        return 0.5 * (self.mean.square() + self.log_variance.exp() - 1.0 - self.log_variance)

    def rate(self) -> Tensor:
        """Return the KL in bits per image, (B,): the cost of relative entropy coding against N(0, 1)."""
        return self.regularization()["kl"] * NATS_TO_BITS


class DiscretePosterior(Posterior):
    """The codes of a batch of images; every draw from it is the same.

    Args:
        quantized: Output of the quantizer.
        codebook_size: K of one index.
    """

    def __init__(self, quantized: Quantized, codebook_size: int):
        self.quantized = quantized
        self.indices = quantized.indices
        self.codebook_size = codebook_size

    def sample(self, generator: torch.Generator | None = None, *, noise: Tensor | None = None) -> Tensor:
        """Return `mode()`: nothing is drawn."""
        del generator, noise
        return self.mode()

    def mode(self) -> Tensor:
        return self.quantized.quantized

    def regularization(self) -> dict[str, Tensor]:
        """Return the quantizer's terms (codebook, commitment, entropy, ...), which its docstring lists."""
        return self.quantized.losses

    def rate(self) -> Tensor:
        """Return the bits per image of a fixed-length code, (B,): log2(K) for each of its codes, of all levels and
        maps."""
        indices = self.quantized.indices
        return self.mode().new_full((len(indices),), indices[0].numel() * math.log2(self.codebook_size))


class DeterministicPosterior(Posterior):
    """Latents without a distribution, from an encoder such as AutoencoderTiny's or AutoencoderDC's.

    Args:
        latents: (B, C, h, w).
    """

    def __init__(self, latents: Tensor):
        self.latents = latents

    def sample(self, generator: torch.Generator | None = None, *, noise: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return the latents."""
        return self.latents

    def mode(self) -> Tensor:
        """Return the latents."""
        return self.latents

    def regularization(self) -> dict[str, Tensor]:
        """Return no terms."""
        return {}

    def rate(self) -> None:
        """Return None: no rate is defined."""
