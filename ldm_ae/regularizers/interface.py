"""The interface of a regularizer, which acts between encoder and decoder while an autoencoder is trained."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ldm_ae.core.draws import Draws
from ldm_ae.core.frozen import PartlyFrozen
from ldm_ae.images.buckets import Size
from ldm_ae.images.views import View
from ldm_ae.models import Autoencoder, LatentSpec, Posterior


class Further(NamedTuple):
    """Further latents that are decoded in the same pass, with a reconstruction loss of their own."""

    name: str
    """Name of the loss, which is logged as `NAME_loss`: reconstruction and perceptual loss, a mean over elements."""
    latents: Tensor
    """Latents to decode, (B, C, h', w')."""
    target: Tensor
    """Images with which the objective's reconstruction and perceptual losses compare them, (B, 3, H', W')."""
    weight: float
    """Weight of this loss relative to the reconstruction loss of the step's images."""


class Regularized(NamedTuple):
    """The decoder's input, and the target of its output."""

    latents: Tensor
    """Latents to decode, (B, C, h, w)."""
    target: Tensor
    """Images with which all losses compare the reconstructions, (B, 3, H, W) in [-1, 1]."""
    terms: dict[str, Tensor] = {}  # noqa: RUF012 - the default of a NamedTuple; it is never modified
    """Named losses, (B,) float32 each, summed over one image's latents, like those of `Posterior.regularization`.
    `objective.regularization_weights` holds their weights."""
    further: tuple[Further, ...] = ()
    """Further latents to decode."""


class Regularizer(PartlyFrozen, abc.ABC):
    """A change of latents, targets or both in training, which makes latents easier to learn for a diffusion model.

    It is part of DistributedDataParallel's forward pass, under autocast. Therefore it may have parameters, which the
    autoencoder's optimizer updates, and buffers; both are in checkpoints. A frozen pretrained network is a submodule
    named in `frozen`. The exported model does not include it, and validation, encoding and decoding do not use it.
    """

    takes_target: bool = False
    """Whether it transforms or compares latents and images together. `forward` then takes, as `pixel_values`, the
    target of `latents`, which an earlier regularizer of a `Chain` may have changed; else the images that were encoded.
    A regularizer that changes the target must declare it."""

    adaptive_terms: frozenset[str] = frozenset()
    """Names of the terms whose weight is relative to the reconstruction: a training step multiplies it by the ratio of
    both gradients' norms at the model's `encoder_last_layer` (`ldm_ae.training.adaptive_terms`)."""

    mixes_samples: bool = False
    """Whether the terms of a sample depend on the other samples of its micro-batch. Then neither gradient accumulation
    nor several processes equal one large batch, as with batch normalization."""

    needed_terms: frozenset[str] = frozenset()
    """Names of the terms without whose weight a part of the regularizer does not learn."""

    view: View | None = None
    """`objective.view`, by which networks of RGB images see others; None for the default of the model's images."""

    @classmethod
    def example(cls) -> Regularizer:
        """Return an instance with random weights for tests; by default, one with the default arguments."""
        return cls()

    @property
    def identity(self) -> str:
        """What a resumed run must have in common with the run; the class's name by default."""
        return type(self).__name__

    def see(self, view: View | None) -> None:
        """Keep `objective.view`; it is called before `prepare`."""
        self.view = view

    def prepare(self, model: Autoencoder) -> None:
        """Check, and adapt to each other, the regularizer and the model, whose trainable parameters are known; the
        default does nothing. It is called once, before anything is trained or resumed.

        Raises:
            UserError: They do not fit.
        """
        del model

    def verify(self, pixel_values: Tensor) -> None:
        """Check some images (B, 3, H, W) in [-1, 1] of the data, before the training; the default does nothing.

        Raises:
            UserError: They show that the regularizer does not fit.
        """
        del pixel_values

    def count_images(self, count: int) -> None:
        """Take the number of training images, before the training; the default does nothing."""
        del count

    def scale(self, model: Autoencoder) -> LatentSpec | None:
        """Return the model's `latent_spec` with the scale that training gives the model, which is then not measured.

        Checkpoints and the exported model have this scale. None, the default, is for a scale that is measured.
        """
        del model
        return None

    def image_sizes(self, size: Size, *, judged: bool) -> Sequence[Size]:
        """Return the sizes of the images that the losses see in training with images of this size; by default, this
        one. It is called after `prepare`.

        Args:
            size: Height and width in pixels.
            judged: Only those that the discriminator sees, which are the sizes of targets.
        """
        del judged
        return [size]

    def encoded_images(self, pixel_values: Tensor, draws: Draws) -> Tensor:
        """Return the images to encode in place of `pixel_values`, all of one size; by default the same."""
        del draws
        return pixel_values

    def learn(self, posteriors: Sequence[Posterior]) -> dict[str, Tensor]:
        """Update the parts that learn without gradients, such as running statistics; do nothing by default.

        A training step calls it once on every process, after its backward passes and before the optimizer's update.

        Args:
            posteriors: The posteriors of this process's micro-batches, in order.

        Returns:
            Scalars to log, for the whole step over all processes.
        """
        del posteriors
        return {}

    @abc.abstractmethod
    def forward(self, posterior: Posterior, latents: Tensor, pixel_values: Tensor, draws: Draws) -> Regularized:
        """Return latents, targets and terms of one batch. Latents and targets of a sample do not depend on other
        samples, and its terms only if `mixes_samples`.

        Args:
            posterior: The encoder's posterior.
            latents: (B, C, h, w), drawn from it, unscaled.
            pixel_values: (B, 3, H, W) in [-1, 1], the encoded images; see `takes_target`.
            draws: Random numbers of each sample, and of the step.
        """
