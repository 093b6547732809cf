"""The interface of a reconstruction loss: one error per element, which the objective reduces."""

from __future__ import annotations

import abc

from torch import Tensor


class ReconstructionLoss(abc.ABC):
    """A map from reconstructions and pixel values, both (B, 3, H, W), to errors of that shape, at least 0."""

    @abc.abstractmethod
    def __call__(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor: ...
