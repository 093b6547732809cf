"""The forward pass of training: encode, draw, regularize, decode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from ldm_ae.core.draws import Draws
from ldm_ae.models import Autoencoder, Posterior
from ldm_ae.regularizers import Identity, Regularizer


class Cut(NamedTuple):
    """A use of the decoder whose graph is apart from the encoder's."""

    latents: Tensor
    """(B, C, h, w), with the encoder's graph."""
    decoder_input: Tensor
    """The same in float32; a leaf, where the decoder's graph ends."""
    reconstructions: Tensor
    """(B, 3, H, W) float32, with the decoder's graph."""


class TrainingOutput(NamedTuple):
    """The outputs of a training forward pass."""

    reconstructions: Tensor
    """(B, 3, H, W) float32, not clamped."""
    target: Tensor
    """(B, 3, H, W) in [-1, 1]: the target of the reconstructions."""
    posterior: Posterior
    terms: dict[str, Tensor]
    """The regularizer's named losses, (B,) float32 each, summed over one image's latents."""
    cuts: tuple[Cut, ...] = ()
    """Where the graph was cut, if so: one for each use of the decoder."""


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

    def forward(
        self,
        pixel_values: Tensor,
        noise: Tensor | None,
        draws: Draws,
        *,
        cut: bool = False,
        decoded: Sequence[Tensor] | None = None,
    ) -> TrainingOutput:
        """Return the reconstructions, targets and terms of (B, 3, H, W) images in [-1, 1].

        Args:
            pixel_values: The images.
            noise: (B, C, h, w) standard normal, for the posterior's draw; None for the global generator.
            draws: Random numbers of each sample, for the regularizer.
            cut: Cut the graph at the decoder's input, whose gradient is then available on its own.
            decoded: With `cut`, the reconstructions of an earlier pass, which are not computed again.
        """
        posterior, latents = self.autoencoder.draw(pixel_values, noise)
        latents, target, terms = self.regularizer(posterior, latents, pixel_values, draws)
        if not cut:
            return TrainingOutput(self.autoencoder.decode(latents), target, posterior, terms)
        decoder_input = latents.detach().float().requires_grad_()
        reconstructions = self.autoencoder.decode(decoder_input) if decoded is None else decoded[0]
        return TrainingOutput(
            reconstructions, target, posterior, terms, (Cut(latents, decoder_input, reconstructions),)
        )
