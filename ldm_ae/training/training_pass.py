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
    """Where the graph was cut, if so: one for each of `all_reconstructions`."""
    further: tuple[FurtherOutput, ...] = ()
    """What the regularizer has decoded beside them."""

    @property
    def all_reconstructions(self) -> list[Tensor]:
        """The reconstructions and the further ones."""
        return [self.reconstructions, *(more.reconstructions for more in self.further)]


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
            noise: (B, C, h, w) standard normal, for the posterior's draw; None for the global generator. Where the
                regularizer makes the images smaller, the first rows and columns are used.
            draws: Random numbers of each sample and of the step, for the regularizer.
            cut: Cut the graph at the decoder's input, whose gradient is then available on its own.
            decoded: With `cut`, all reconstructions of an earlier pass, which are not computed again.
        """
        pixel_values = self.regularizer.encoded_images(pixel_values, draws)
        if noise is not None:
            height, width = self.autoencoder.latent_spec.latent_size(*pixel_values.shape[-2:])
            noise = noise[..., :height, :width]
        posterior, latents = self.autoencoder.draw(pixel_values, noise)
        latents, target, terms, further = self.regularizer(posterior, latents, pixel_values, draws)
        every = [latents, *(more.latents for more in further)]
        cuts: tuple[Cut, ...] = ()
        if cut:
            inputs = [each.detach().float().requires_grad_() for each in every]
            found = [self.autoencoder.decode(each) for each in inputs] if decoded is None else decoded
            cuts = tuple(Cut(*each) for each in zip(every, inputs, found, strict=True))
        else:
            found = [self.autoencoder.decode(each) for each in every]
        outputs = tuple(
            FurtherOutput(more.name, images, more.target, more.weight)
            for more, images in zip(further, found[1:], strict=True)
        )
        return TrainingOutput(found[0], target, posterior, terms, cuts, outputs)

    def learn(self, posteriors: Sequence[Posterior]) -> dict[str, Tensor]:
        """Update what learns without gradients in both, once a step; return scalars to log."""
        return self.autoencoder.learn(posteriors) | self.regularizer.learn(posteriors)
