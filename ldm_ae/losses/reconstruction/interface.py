"""The interface of a reconstruction loss: one error per element, which the objective reduces."""

from __future__ import annotations

import abc

from torch import Tensor

from ldm_ae.images.pixels import PixelSpec


class ReconstructionLoss(abc.ABC):
    """A map from reconstructions and pixel values, both (B, C, H, W), to errors of that shape, at least 0 unless it
    is the logarithm of a density (`Likelihood`).

    Where images may have missing data, both arguments are equal at missing elements, and the objective leaves the
    errors there out of its means (`ldm_ae.images.missing`).
    """

    def check(self, pixels: PixelSpec) -> None:
        """Raise UserError unless the loss is for a model's images; by default, it is for any."""
        del pixels

    @abc.abstractmethod
    def __call__(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor: ...
