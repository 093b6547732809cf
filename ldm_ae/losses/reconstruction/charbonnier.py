"""The Charbonnier loss sqrt(d^2 + eps^2), Charbonnier et al., ICIP 1994."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_ae.losses.reconstruction.interface import ReconstructionLoss


class Charbonnier(ReconstructionLoss):
    """sqrt((x - x̂)² + eps²): L1 that is smooth at zero.

    Args:
        eps: Where the parabola turns into the line, in units of pixel values.
    """

    def __init__(self, *, eps: float = 1e-3):
        self.eps = eps

    def __call__(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        return torch.sqrt((reconstructions - pixel_values).square() + self.eps**2)
