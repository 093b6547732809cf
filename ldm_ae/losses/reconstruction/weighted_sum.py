"""A weighted sum of reconstruction losses.

For example L2, the likelihood of a Gaussian, beside L1, whose gradient does not vanish near zero.
"""

from __future__ import annotations

import math

from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.losses.reconstruction.interface import ReconstructionLoss
from ldm_ae.losses.reconstruction.likelihood import refuse_likelihood


class WeightedReconstruction(ReconstructionLoss):
    """A sum of reconstruction losses, each times its weight.

    Args:
        errors: The losses.
        weights: The weight of each; null gives each the weight 1.
    """

    short_names = ("sum",)

    def __init__(self, *, errors: list[ReconstructionLoss], weights: list[float] | None = None):
        weights = [1.0] * len(errors) if weights is None else weights
        if not errors or len(errors) != len(weights):
            raise UserError(
                f"{type(self).__name__}: expected one weight for each loss, got {len(errors)} losses and "
                f"{len(weights)} weights"
            )
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
            raise UserError(f"{type(self).__name__}: expected weights of at least 0, got {weights}")
        for loss in errors:
            refuse_likelihood(loss, f"{type(self).__name__}.errors")
        self.errors, self.weights = errors, weights

    def check(self, pixels: PixelSpec) -> None:
        for loss in self.errors:
            loss.check(pixels)

    def __call__(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        terms = zip(self.weights, self.errors, strict=True)
        first, *others = (weight * loss(reconstructions, pixel_values) for weight, loss in terms)
        return sum(others, start=first)
