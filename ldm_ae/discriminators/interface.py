"""What the trainer knows of a discriminator."""

from __future__ import annotations

import abc

from torch import Tensor, nn

from ldm_ae.images.pixels import RGB, PixelSpec


class Discriminator(nn.Module, abc.ABC):
    """Maps images to logits: high where they look real. Its parameters stay float32."""

    pixels: PixelSpec = RGB
    """The images that it takes; a run compares them with the model's."""

    @abc.abstractmethod
    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) in about [-1, 1] -> logits, (B, ...) of any further shape."""


class BothSides(nn.Module):
    """Logits of real and reconstructed images in one forward pass, as DistributedDataParallel requires.

    The two batches go through separately, so that batch normalization sees them apart, as in LDM.
    """

    def __init__(self, discriminator: Discriminator):
        super().__init__()
        self.discriminator = discriminator

    def forward(self, pixel_values: Tensor, reconstructions: Tensor) -> tuple[Tensor, Tensor]:
        """(logits_real, logits_fake)."""
        return self.discriminator(pixel_values), self.discriminator(reconstructions)
