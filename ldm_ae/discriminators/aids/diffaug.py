"""Differentiable augmentation of what the discriminator sees.

Source: Zhao et al., Differentiable Augmentation for Data-Efficient GAN Training, arXiv 2006.10738, section 3, with
the numbers of the authors' code. Their batch draws from the global generator; here every sample has its own numbers,
which are equal for its image and its reconstruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_ae.core.draws import Draws
from ldm_ae.core.errors import UserError
from ldm_ae.discriminators.aids.interface import DiscriminatorAid
from ldm_ae.images.pixels import PixelSpec

Transform = Literal["brightness", "saturation", "contrast", "translation", "cutout"]


class DiffAug(DiscriminatorAid):
    """Random brightness, saturation, contrast, translation and cutout, from which the generator gets its gradient.

    Brightness adds U(-0.5, 0.5). Saturation multiplies the distance of each pixel from its grey value by U(0, 2), and
    contrast that of each value from the image's mean by U(0.5, 1.5). Translation fills the border with zeros, mid grey.
    These three act on colours: of any number of channels, the grey value is the mean of the channels; alpha stays as it
    is. Translation and cutout move and erase all channels.

    Args:
        policy: The transforms, in the order in which they are applied.
        translation: Largest shift, as a fraction of the image's sides.
        cutout: Sides of the rectangle that is set to zero, as fractions of the image's sides. Its centre is anywhere in
            the image. StyleGAN-T has 0.2.
    """

    short_names = ("diffaug",)

    def __init__(
        self,
        *,
        policy: Sequence[Transform] = ("brightness", "saturation", "contrast", "translation", "cutout"),
        translation: float = 0.125,
        cutout: float = 0.5,
    ):
        super().__init__()
        names = get_args(Transform)
        for name in policy:
            if name not in names:
                raise UserError(f"DiffAug: policy: expected transforms among {', '.join(names)}, got '{name}'")
        for name, value in (("translation", translation), ("cutout", cutout)):
            if not 0 <= value <= 1:
                raise UserError(f"DiffAug: {name}: expected a fraction from 0 to 1, got {value}")
        self.policy, self.translation, self.cutout = tuple(policy), translation, cutout
        self._with_alpha = False

    def prepare(self, pixels: PixelSpec) -> None:
        self._with_alpha = pixels.meaning == "rgba"

    def augment(self, pixel_values: Tensor, draws: Draws) -> Tensor:
        # Every number is drawn whatever the policy, so that its transforms do not depend on each other.
        numbers = draws.uniform(7)
        amounts = numbers[:, :3].to(pixel_values).view(-1, 3, 1, 1, 1)
        for name in self.policy:
            if name == "translation":
                pixel_values = _translate(pixel_values, numbers[:, 3:5], self.translation)
            elif name == "cutout":
                pixel_values = _cut_out(pixel_values, numbers[:, 5:], self.cutout)
            else:
                change, which = _COLOURS[name]
                if self._with_alpha:
                    colours = change(pixel_values[:, :-1], amounts[:, which])
                    pixel_values = torch.cat([colours, pixel_values[:, -1:]], dim=1)
                else:
                    pixel_values = change(pixel_values, amounts[:, which])
        return pixel_values


def _brightness(images: Tensor, amount: Tensor) -> Tensor:
    return images + (amount - 0.5)


def _saturation(images: Tensor, amount: Tensor) -> Tensor:
    return torch.lerp(images.mean(dim=1, keepdim=True), images, 2 * amount)


def _contrast(images: Tensor, amount: Tensor) -> Tensor:
    return torch.lerp(images.mean(dim=(1, 2, 3), keepdim=True), images, amount + 0.5)


_COLOURS = {"brightness": (_brightness, 0), "saturation": (_saturation, 1), "contrast": (_contrast, 2)}
"""Each transform of colours, and which of a sample's numbers is its amount."""


def _translate(images: Tensor, amounts: Tensor, fraction: float) -> Tensor:
    """Shift each image down and right by whole pixels; the amounts (B, 2) in [0, 1) are on the CPU."""
    most = [int(side * fraction + 0.5) for side in images.shape[-2:]]
    shifts = (amounts * torch.tensor([2 * side + 1 for side in most])).long() - torch.tensor(most)
    # A negative padding crops.
    shifted = [
        F.pad(image, (right, -right, down, -down)) for image, (down, right) in zip(images, shifts.tolist(), strict=True)
    ]
    return torch.stack(shifted)


def _cut_out(images: Tensor, amounts: Tensor, fraction: float) -> Tensor:
    """Set a rectangle of each image to zero; the amounts (B, 2) in [0, 1) are on the CPU."""
    inside = []
    for amount, side in zip(amounts.T, images.shape[-2:], strict=True):
        length = int(side * fraction + 0.5)
        first = (amount * (side + 1 - length % 2)).long() - length // 2
        positions = torch.arange(side) - first[:, None]
        inside.append((positions >= 0) & (positions < length))
    rows, columns = (where.to(images.device) for where in inside)
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)
