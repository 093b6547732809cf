"""The interface of an aid of a discriminator: a method that steadies the training of any discriminator."""

from __future__ import annotations

import abc

from torch import Tensor
from typing_extensions import Self

from ldm_ae.core.draws import Draws
from ldm_ae.core.frozen import PartlyFrozen
from ldm_ae.discriminators.interface import Discriminator
from ldm_ae.images.pixels import PixelSpec


class DiscriminatorAid(PartlyFrozen, abc.ABC):
    """A method beside a discriminator: an augmentation of its input, a penalty, or both.

    A run has any number of them in `discriminator_aids`, at most one of each class, and `AidedDiscriminator` calls
    them in this order. Buffers are in checkpoints. Parameters are trained by the discriminator's optimizer. All methods
    are hooks that do nothing by default.
    """

    needs_double_backward: bool = False
    """Whether `penalty` differentiates through a gradient. Fast convolutions without this ability are then not used."""

    @classmethod
    def example(cls) -> Self:
        """Return an instance for tests, whose effect is large enough to be measured; the default one by default."""
        return cls()

    def prepare(self, pixels: PixelSpec) -> None:
        """Fit the aid to a model's images, before the training; do nothing by default.

        Raises:
            UserError: It has no meaning for these images.
        """
        del pixels

    def augment(self, pixel_values: Tensor, draws: Draws) -> Tensor:
        """Return the discriminator's input for images; the images themselves by default.

        Called for real images, for reconstructions, and for the generator's reconstructions, each time with the same
        random numbers, so that all three are transformed equally. The generator's gradient passes through it.

        Args:
            pixel_values: (B, C, H, W) in about [-1, 1].
            draws: Random numbers of each sample.
        """
        del draws
        return pixel_values

    def penalty(
        self, discriminator: Discriminator, real: Tensor, fake: Tensor, logits: tuple[Tensor, Tensor], step: int
    ) -> Tensor | None:
        """Return a weighted term of the discriminator's loss, a scalar mean over samples; None for none at this step.

        It is part of DistributedDataParallel's forward pass, under autocast.

        Args:
            discriminator: The network, for further passes.
            real: (B, C, H, W), augmented.
            fake: Reconstructions, augmented, detached.
            logits: Logits of `real` and `fake`, (B, ...).
            step: Number of the generator's updates so far.
        """
        del discriminator, real, fake, logits, step
        return None

    def learn(self, logits_real: Tensor, logits_fake: Tensor) -> None:
        """Update buffers after a discriminator step.

        Args:
            logits_real: Scalar, the mean over the whole step, all micro-batches and processes.
            logits_fake: The same mean for reconstructions.
        """


def image_means(logits: Tensor) -> Tensor:
    """Return the mean of each image's logits (B, ...), (B,) float32: the judgement of the image as a whole."""
    return logits.float().reshape(len(logits), -1).mean(dim=1)
