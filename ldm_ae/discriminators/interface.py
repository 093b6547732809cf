"""The interface of a discriminator to the trainer."""

from __future__ import annotations

import abc
from typing import NamedTuple

from torch import Tensor, nn
from typing_extensions import Self

from ldm_ae.core.draws import Draws
from ldm_ae.core.frozen import PartlyFrozen
from ldm_ae.images.pixels import RGB, PixelSpec
from ldm_ae.images.views import View, view_for


class Discriminator(PartlyFrozen, abc.ABC):
    """A network from images to logits, which are high where images look real. Its parameters stay float32.

    A frozen pretrained backbone is a submodule named in `frozen`. The other methods are hooks that do nothing by
    default.
    """

    needs_double_backward: bool = False
    """Whether `penalty` differentiates through a gradient. Fast convolutions without this ability are then not used."""

    pixels: PixelSpec = RGB
    """Supported images; a run compares them with the model's, after `prepare`."""
    view: View | None = None
    """The view by which a network of RGB images sees others, which `augment` applies; see `see_rgb`."""

    @classmethod
    def example(cls) -> Self:
        """Return a small instance for tests, which takes images of 64x64 and needs no files; the default one by
        default."""
        return cls()

    def prepare(self, pixels: PixelSpec, view: View | None = None) -> None:
        """Fit the network to a model's images, before its weights are used or loaded; do nothing by default, so that
        other images than `pixels` are refused.

        Convolutions of pixels replace their first layer, and networks over frozen features of RGB images call
        `see_rgb`. Nothing may change for images that fit already.

        Args:
            pixels: The model's images.
            view: `objective.view`; None takes the default of the images.

        Raises:
            UserError: The network cannot fit these images.
        """
        del pixels, view

    def see_rgb(self, pixels: PixelSpec, view: View | None) -> None:
        """Let a network that takes RGB images see others by a view, one RGB image each.

        Raises:
            UserError: There is no view of these images.
        """
        self.view = view_for(RGB, pixels, view, f"the discriminator ({self.identity})")
        self.pixels = pixels

    @property
    def identity(self) -> str:
        """The name in messages, which a resumed run must have in common with the run; the class's name by default."""
        return type(self).__name__

    def saved_parts(self) -> dict[str, nn.Module]:
        """Return the modules that a checkpoint holds, by the names of their files; itself by default."""
        return {"discriminator": self}

    @abc.abstractmethod
    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return logits, (B, ...) with any further shape, of augmented images (B, C, H, W) in about [-1, 1]."""

    def augment(self, pixel_values: Tensor, draws: Draws) -> Tensor:
        """Return the discriminator's input for images: their view if it has one, or the images themselves by default.

        Called for real images, for reconstructions, and for the generator's reconstructions, each time with the same
        random numbers, so that all three are transformed equally. The generator's gradient passes through it.

        Args:
            pixel_values: (B, C, H, W).
            draws: Random numbers of each sample.
        """
        return pixel_values if self.view is None else self.view.single(pixel_values, draws)

    def penalty(self, real: Tensor, fake: Tensor, logits: tuple[Tensor, Tensor], step: int) -> Tensor | None:
        """Return a weighted term of the discriminator's loss, a scalar mean over samples; None for none at this step.

        It is part of DistributedDataParallel's forward pass, under autocast.

        Args:
            real: (B, C, H, W), augmented.
            fake: Reconstructions, augmented, detached.
            logits: Logits of `real` and `fake`.
            step: Number of the generator's updates so far.
        """
        del real, fake, logits, step
        return None

    def learn(self, logits_real: Tensor, logits_fake: Tensor) -> None:
        """Update parts that learn without gradients, such as moving averages in buffers, after a discriminator step.

        Args:
            logits_real: Scalar, the mean over the whole step, all micro-batches and processes.
            logits_fake: The same mean for reconstructions.
        """


class DiscriminatorOutput(NamedTuple):
    """The output of one pass of the discriminator's step."""

    logits_real: Tensor
    logits_fake: Tensor
    penalty: Tensor | None
    """Scalar penalty, or None."""


class DiscriminatorPass(nn.Module):
    """Logits of real and reconstructed images in one forward pass, as DistributedDataParallel requires.

    The two batches pass separately, so that batch normalization uses separate statistics, as in LDM.
    """

    def __init__(self, discriminator: Discriminator):
        super().__init__()
        self.discriminator = discriminator

    def forward(self, real: Tensor, fake: Tensor, step: int) -> DiscriminatorOutput:
        """Return logits and penalty of augmented images, (B, C, H, W) each."""
        logits = self.discriminator(real), self.discriminator(fake)
        return DiscriminatorOutput(*logits, self.discriminator.penalty(real, fake, logits, step))
