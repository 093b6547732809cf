"""The likelihood corrected by the size of the compressed image. Source: Serrà et al., Input complexity and
out-of-distribution detection with likelihood-based generative models, arXiv 1909.11480, equation 1:

    S(x) = -log2 p(x) - L(x)

with L(x) the smallest number of bits among several lossless coders, here PNG and WebP.
"""

from __future__ import annotations

import io

import torch
from PIL import Image
from torch import Tensor

from ldm_ae.evaluation.codecs import missing_codec
from ldm_ae.evaluation.metrics.interface import CannotScoreError, Setting
from ldm_ae.images.stored import is_plain
from ldm_ae.images.uint8 import to_uint8
from ldm_ae.images.writing import picture
from ldm_ae.losses import Bernoulli
from ldm_ae.outliers.encoded import Encoded, likelihood_kind
from ldm_ae.outliers.scores.interface import OutlierScore


class Complexity(OutlierScore):
    """Negative log-likelihood minus the size of the image under a lossless coder, in bits per value."""

    name = "complexity"
    label = "Negative ELBO minus complexity"
    explanation = (
        "Bits of the image under the model minus its bits under PNG or WebP, whichever is smaller: simple images no "
        "longer count as normal because they are simple."
    )

    def prepare(self, setting: Setting) -> None:
        """Check that the model has a likelihood of images that the coders can code."""
        model = setting.model
        assert model is not None
        kind = likelihood_kind(setting)
        if kind.of_codes:
            raise CannotScoreError("the likelihood under the prior is that of codes, not of the pixels that are coded")
        if not is_plain(model.pixel_spec):
            raise CannotScoreError(f"PNG and WebP code RGB and grey images of 8 bits, but these are {model.pixel_spec}")
        if (why := missing_codec("webp")) is not None:
            raise CannotScoreError(why)
        self._binary = isinstance(model.likelihood, Bernoulli)
        self.unit = kind.unit

    def measure(self, images: Encoded) -> Tensor:
        """Return the difference for each image, in bits per value."""
        values = images.pixel_values[0].numel()
        return images.negative_log_likelihood - lossless_bits(images.pixel_values, binary=self._binary) / values


def lossless_bits(pixel_values: Tensor, *, binary: bool = False) -> Tensor:
    """Return the size of each image in bits, the smaller one of PNG and lossless WebP, (B,) float64 on the CPU.

    Args:
        pixel_values: Grey or RGB images (B, C, H, W) in [-1, 1], rounded to 8 bits.
        binary: Code black and white only, with a threshold in the middle: the images of a Bernoulli likelihood.
    """
    sizes = []
    for levels in to_uint8(pixel_values).cpu().numpy():
        if binary:
            levels = (levels > 127).astype(levels.dtype) * 255
        image = picture(levels)
        if binary and image.mode == "L":
            image = image.convert("1")
        sizes.append(8 * min(_size(image, format="PNG", optimize=True), _size(image, format="WEBP", lossless=True)))
    return torch.tensor(sizes, dtype=torch.float64)


def _size(image: Image.Image, **options: object) -> int:
    buffer = io.BytesIO()
    image.save(buffer, **options)  # type: ignore[arg-type]  # Pillow's types list each option
    return len(buffer.getvalue())
