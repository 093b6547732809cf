"""The absolute error in opponent colours, with a weight for the two axes of colour."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.losses.reconstruction.interface import ReconstructionLoss

_AXES = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
AXES = _AXES / _AXES.norm(dim=1, keepdim=True)
"""Grey, red against blue, and magenta against green: orthonormal rows."""


class OpponentL1(ReconstructionLoss):
    """|A(x - x̂)| with weight 1 for grey and `chroma_weight` for the two colour axes of an orthonormal A.

    In photos, the three channels of an error are alike, and L1 over red, green and blue hardly sees a wrong hue.
    With weight 1 the squares of the errors sum to those of `L2` over RGB, since A is a rotation.

    Args:
        chroma_weight: Weight of the colour axes, at least 0.

    Raises:
        UserError: If the weight is negative.
    """

    short_names = ("opponent",)

    def __init__(self, *, chroma_weight: float = 2.0):
        if not 0 <= chroma_weight < float("inf"):
            raise UserError(f"OpponentL1: expected chroma_weight of at least 0, got {chroma_weight}")
        self._matrix = AXES * torch.tensor([1.0, chroma_weight, chroma_weight])[:, None]

    def check(self, pixels: PixelSpec) -> None:
        if pixels.meaning != "rgb":
            raise UserError(f"OpponentL1 needs rgb images, but the model uses {pixels}; choose l1, l2 or charbonnier")

    def __call__(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        error = reconstructions - pixel_values
        return torch.einsum("kc,bchw->bkhw", self._matrix.to(error), error).abs()
