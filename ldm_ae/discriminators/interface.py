"""What the trainer knows of a discriminator."""

from __future__ import annotations

import abc
from typing import NamedTuple

from torch import Tensor, nn

from ldm_ae.core.draws import Draws
from ldm_ae.core.frozen import PartlyFrozen
from ldm_ae.images.pixels import RGB, PixelSpec


class Discriminator(PartlyFrozen, abc.ABC):
    """Maps images to logits: high where they look real. Its parameters stay float32.

    A pretrained backbone that does not learn is a submodule named in `frozen`. The other methods are hooks that do
    nothing by default.
    """

    needs_double_backward: bool = False
    """Whether `penalty` differentiates through a gradient. Fast convolutions that cannot are not used then."""

    pixels: PixelSpec = RGB
    """The images that it takes; a run compares them with the model's."""

    @abc.abstractmethod
    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) in about [-1, 1] -> logits, (B, ...) of any further shape."""

    def augment(self, pixel_values: Tensor, draws: Draws) -> Tensor:
        """Images as the discriminator shall see them; the images themselves by default.

        Called for real images, for reconstructions, and for the generator's reconstructions, each time with the same
        random numbers, so that the three are transformed alike. The generator's gradient passes through it.

        Args:
            pixel_values: (B, 3, H, W).
            draws: Random numbers of each sample.
        """
        del draws
        return pixel_values

    def penalty(self, real: Tensor, fake: Tensor, logits: tuple[Tensor, Tensor], step: int) -> Tensor | None:
        """A weighted term of the discriminator's loss, scalar; None for none at this step. A mean over samples.

        It is part of the forward pass that DistributedDataParallel sees, under autocast.

        Args:
            real: (B, 3, H, W), augmented.
            fake: Reconstructions, augmented, detached.
            logits: Of both.
            step: Updates of the generator done so far.
        """
        del real, fake, logits, step
        return None

    def learn(self, logits_real: Tensor, logits_fake: Tensor) -> None:
        """Update what learns without gradients, such as moving averages in buffers, after the discriminator's step.

        Args:
            logits_real: Scalar, the mean over the whole step, all micro-batches and processes.
            logits_fake: Likewise.
        """


class Verdict(NamedTuple):
    """What one pass of the discriminator's step gives."""

    logits_real: Tensor
    logits_fake: Tensor
    penalty: Tensor | None
    """Scalar."""


class BothSides(nn.Module):
    """Logits of real and reconstructed images in one forward pass, as DistributedDataParallel requires.

    The two batches go through separately, so that batch normalization sees them apart, as in LDM.
    """

    def __init__(self, discriminator: Discriminator):
        super().__init__()
        self.discriminator = discriminator

    def forward(self, real: Tensor, fake: Tensor, step: int) -> Verdict:
        """Of (B, 3, H, W) augmented images each."""
        logits = self.discriminator(real), self.discriminator(fake)
        return Verdict(*logits, self.discriminator.penalty(real, fake, logits, step))
