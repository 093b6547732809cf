"""Rounding to 8 bits of what the discriminator sees, so that levels alone do not reveal reconstructions.

Source: the published code of Zheng et al., Diffusion Transformers with Representation Autoencoders, arXiv 2510.11690,
which rounds in the discriminator's step alone, so that the generator's loss is that of other images. Here both steps
see the same images. The straight-through gradient is that of Bengio et al., arXiv 1308.3432.
"""

from __future__ import annotations

from torch import Tensor

from ldm_ae.core.draws import Draws
from ldm_ae.core.errors import UserError
from ldm_ae.discriminators.aids.interface import DiscriminatorAid
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.images.uint8 import rounded


class EightBit(DiscriminatorAid):
    """Clamping to [-1, 1] and rounding to 256 levels; the gradient passes through as if nothing were done.

    Real images, which have 8 bits already, do not change; those that a regularizer has changed are rounded like their
    reconstructions. Put it first, before augmentations.
    """

    short_names = ("eight-bit",)

    def prepare(self, pixels: PixelSpec) -> None:
        if pixels.bits != 8:
            raise UserError(f"EightBit rounds to 8 bits, but the model's images are {pixels}; remove it")

    def augment(self, pixel_values: Tensor, draws: Draws) -> Tensor:
        # The difference is exactly zero, and only it has a gradient.
        return rounded(pixel_values.detach()) + (pixel_values - pixel_values.detach()).float()
