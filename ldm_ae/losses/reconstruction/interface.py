"""What a reconstruction loss is: one error per element, reduced by the objective."""

from __future__ import annotations

import abc

from torch import Tensor


class ReconstructionLoss(abc.ABC):
    """Maps reconstructions and pixel_values, both (B, 3, H, W), to errors of that shape, at least 0."""

    @abc.abstractmethod
    def __call__(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor: ...
