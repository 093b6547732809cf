"""Reconstruction losses: one error per element, reduced by the objective.

L1 and L2 are those of the field; Charbonnier is sqrt(d^2 + eps^2), Charbonnier et al., ICIP 1994.
"""

from __future__ import annotations

import abc

import torch
from torch import Tensor


class ReconstructionLoss(abc.ABC):
    """Maps reconstructions and pixel_values, both (B, 3, H, W), to errors of that shape, at least 0."""

    @abc.abstractmethod
    def __call__(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor: ...


class L1(ReconstructionLoss):
    """|x - x̂|."""

    def __call__(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        return (reconstructions - pixel_values).abs()


class L2(ReconstructionLoss):
    """(x - x̂)²."""

    def __call__(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        return (reconstructions - pixel_values).square()


class Charbonnier(ReconstructionLoss):
    """sqrt((x - x̂)² + eps²): L1 that is smooth at zero.

    Args:
        eps: Where the parabola turns into the line, in units of pixel values.
    """

    def __init__(self, *, eps: float = 1e-3):
        self.eps = eps

    def __call__(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        return torch.sqrt((reconstructions - pixel_values).square() + self.eps**2)
