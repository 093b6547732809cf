"""The absolute error."""

from __future__ import annotations

from torch import Tensor

from ldm_ae.losses.reconstruction.interface import ReconstructionLoss


class L1(ReconstructionLoss):
    """|x - x̂|."""

    short_names = ("mae",)

    def __call__(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        return (reconstructions - pixel_values).abs()
