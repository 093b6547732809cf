"""EQ-VAE: the decoder of scaled and rotated latents gives scaled and rotated images.

Source: Kouzelis et al., EQ-VAE: Equivariance Regularized Latent Space for Improved Generative Image Modeling, arXiv
2502.09509, section 3.2, with the numbers of its code (github.com/zelaki/eqvae, train_eqvae). With probability 0.5 the
decoder decodes τ(z), and the reconstruction is compared with τ(x); τ scales by s in {8, ..., 31}/32 (bilinear) and
rotates by k in {1, 2, 3} quarter turns. Otherwise, with probability 0.25, smaller images are encoded and reconstructed;
otherwise nothing changes.

The scale and the rotation are those of the whole step, as they are of a batch in the paper: one draw for all its
micro-batches and processes (`Draws.of_step`). With a draw for each sample, reconstructions would have several shapes:
networks, perceptual distances and discriminators would run once for each, and padded latents would change what
normalization and attention of the decoder see. The published code draws anew for the discriminator's step, so that its
discriminator judges other images than the generator is trained on; here both have the same target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ldm_ae.core.draws import Draws
from ldm_ae.core.errors import UserError
from ldm_ae.images.buckets import Size
from ldm_ae.images.pixels import RGB
from ldm_ae.models import Autoencoder, Posterior
from ldm_ae.regularizers._resizing import fraction_of, require_any_size, resized, resized_images
from ldm_ae.regularizers.interface import Regularized, Regularizer

_STEPS = 32
"""Scales are multiples of 1/32, which the latents of 256-pixel images at a downsample factor of 8 have exactly."""


class EQVAE(Regularizer):
    """Decodes scaled and rotated latents to images that are scaled and rotated alike, in some of the steps.

    The sides of scaled latents are rounded down to whole latents, and those of images to what these decode to. A
    discrete model's quantized latents are transformed.

    Args:
        probability: Probability that a step transforms the latents, in [0, 1].
        small_image_probability: Probability that another step encodes smaller images, in [0, 1].
        smallest_scale: The smallest scale, from 1/32 to 31/32; scales are its multiples of 1/32 below 1, with equal
            probability.
    """

    short_names = ("eq-vae",)
    takes_target = True

    def __init__(
        self, *, probability: float = 0.5, small_image_probability: float = 0.25, smallest_scale: float = 0.25
    ):
        super().__init__()
        for name, value in (("probability", probability), ("small_image_probability", small_image_probability)):
            if not 0 <= value <= 1:
                raise UserError(f"EQVAE: expected {name} in [0, 1], got {value}")
        if not 1 / _STEPS <= smallest_scale <= 1 - 1 / _STEPS:
            raise UserError(f"EQVAE: expected smallest_scale from 1/32 to 31/32, got {smallest_scale}")
        self.probability, self.small_image_probability = probability, small_image_probability
        self.numerators = range(math.ceil(smallest_scale * _STEPS), _STEPS)
        self._factor: int | None = None
        self._pixels = RGB

    def prepare(self, model: Autoencoder) -> None:
        require_any_size(model, "EQVAE")
        self._factor, self._pixels = model.latent_spec.downsample_factor, model.pixel_spec

    def image_sizes(self, size: Size, *, judged: bool) -> Sequence[Size]:
        del judged
        small = [self._images_of(self._scaled(size, numerator)) for numerator in self.numerators]
        turned = [(width, height) for height, width in small] if self.probability else []
        changes = self.probability > 0 or self.small_image_probability > 0
        return list(dict.fromkeys([size, *(small if changes else []), *turned]))

    def encoded_images(self, pixel_values: Tensor, draws: Draws) -> Tensor:
        numerator, quarters = self._change(draws)
        if numerator is None or quarters:
            return pixel_values
        height, width = pixel_values.shape[-2:]
        return resized_images(pixel_values, self._images_of(self._scaled((height, width), numerator)), self._pixels)

    def forward(self, posterior: Posterior, latents: Tensor, pixel_values: Tensor, draws: Draws) -> Regularized:  # noqa: ARG002
        numerator, quarters = self._change(draws)
        if numerator is None or not quarters:
            return Regularized(latents, pixel_values)
        height, width = latents.shape[-2:]
        size = fraction_of((height, width), numerator, _STEPS)
        changed, target = resized(latents, size), resized_images(pixel_values, self._images_of(size), self._pixels)
        return Regularized(torch.rot90(changed, quarters, (-2, -1)), torch.rot90(target, quarters, (-2, -1)))

    def _change(self, draws: Draws) -> tuple[int | None, int]:
        """Return the step's scale in units of 1/32, None for no change, and its quarter turns, 0 for smaller images."""
        generator = draws.of_step("eq-vae")
        first, second, scale, turn = (generator.random() for _ in range(4))
        quarters = 1 + int(3 * turn) if first < self.probability else 0
        if not quarters and second >= self.small_image_probability:
            return None, 0
        return self.numerators[int(len(self.numerators) * scale)], quarters

    def _scaled(self, images: Size, numerator: int) -> Size:
        """Return the size of the scaled latents of images."""
        assert self._factor is not None, "prepare comes before the first pass"
        return fraction_of((images[0] // self._factor, images[1] // self._factor), numerator, _STEPS)

    def _images_of(self, latents: Size) -> Size:
        assert self._factor is not None, "prepare comes before the first pass"
        return latents[0] * self._factor, latents[1] * self._factor
