"""The forward pass of training: encode, draw, regularize, decode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from ldm_ae.core.draws import Draws
from ldm_ae.models import Autoencoder, Posterior
from ldm_ae.regularizers import Identity, Regularizer


class FurtherOutput(NamedTuple):
    """The decoded form of a regularizer's `Further` latents."""

    name: str
    reconstructions: Tensor
    """(B, 3, H', W') float32, not clamped."""
    target: Tensor
    """(B, 3, H', W') in [-1, 1]."""
    weight: float
    """Weight of their reconstruction loss."""


class TrainingOutput(NamedTuple):
    """The outputs of a training forward pass."""

    reconstructions: Tensor
    """(B, 3, H, W) float32, not clamped."""
    target: Tensor
    """(B, 3, H, W) in [-1, 1]: the target of the reconstructions."""
    posterior: Posterior
    terms: dict[str, Tensor]
    """The regularizer's named losses, (B,) float32 each, summed over one image's latents."""
    further: tuple[FurtherOutput, ...]
    """What the regularizer has decoded beside them."""


class TrainingPass(nn.Module):
    """Autoencoder and regularizer in one call, which DistributedDataParallel wraps.

    Args:
        autoencoder: The model to train.
        regularizer: The module between its encoder and decoder; `Identity` by default.
    """

    def __init__(self, autoencoder: Autoencoder, regularizer: Regularizer | None = None):
        super().__init__()
        self.autoencoder = autoencoder
        self.regularizer = Identity() if regularizer is None else regularizer

    def forward(self, pixel_values: Tensor, noise: Tensor | None, draws: Draws) -> TrainingOutput:
        """Return the reconstructions, targets and terms of (B, 3, H, W) images in [-1, 1].

        Args:
            pixel_values: The images.
            noise: (B, C, h, w) standard normal, for the posterior's draw; None for the global generator. Where the
                regularizer makes the images smaller, the first rows and columns are used.
            draws: Random numbers of each sample and of the step, for the regularizer.
        """
        decode = self.autoencoder.decode
        pixel_values = self.regularizer.encoded_images(pixel_values, draws)
        if noise is not None:
            height, width = self.autoencoder.latent_spec.latent_size(*pixel_values.shape[-2:])
            noise = noise[..., :height, :width]
        posterior, latents = self.autoencoder.draw(pixel_values, noise)
        latents, target, terms, further = self.regularizer(posterior, latents, pixel_values, draws)
        decoded = tuple(FurtherOutput(more.name, decode(more.latents), more.target, more.weight) for more in further)
        return TrainingOutput(decode(latents), target, posterior, terms, decoded)

    def learn(self, posteriors: Sequence[Posterior]) -> dict[str, Tensor]:
        """Update what learns without gradients in both, once a step; return scalars to log."""
        return self.autoencoder.learn(posteriors) | self.regularizer.learn(posteriors)
