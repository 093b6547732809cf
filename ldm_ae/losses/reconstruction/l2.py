"""The squared error."""

from __future__ import annotations

from torch import Tensor

from ldm_ae.losses.reconstruction.interface import ReconstructionLoss


class L2(ReconstructionLoss):
    """(x - x̂)²."""

    short_names = ("mse",)

    def __call__(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        return (reconstructions - pixel_values).square()
