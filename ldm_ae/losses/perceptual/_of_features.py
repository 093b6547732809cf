"""The base of losses that compare what a frozen feature network makes of both images."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from ldm_ae.features import FEATURE_NETWORKS, FeatureNetwork
from ldm_ae.losses.perceptual.interface import PerceptualLoss


class FeatureLoss(PerceptualLoss):
    """A distance of what a feature network gives for both images, in its own dtype; the real image's has no graph.

    Args:
        features: The network.
    """

    kind: ClassVar[str]
    """What is compared, in the name of the loss after the network's."""
    example_network: ClassVar[str] = "ConvNeXt"
    """Name of the feature network of `example`."""

    def __init__(self, features: FeatureNetwork):
        super().__init__(f"{features.name}_{self.kind}")
        self.features = features

    @classmethod
    def example(cls) -> Self:
        return cls(features=FEATURE_NETWORKS[cls.example_network].example())

    @property
    def identity(self) -> str:
        return f"{self.name} of {self.features.identity}"

    @abc.abstractmethod
    def compared(self, pixel_values: Tensor) -> Any:
        """Return what is compared of images (B, 3, H, W)."""

    @abc.abstractmethod
    def distance(self, found: Any, real: Any) -> Tensor:
        """Return the distances of what is compared, (B,), or (parts * B,) of images that are cut into parts."""

    def forward(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        with torch.autocast(pixel_values.device.type, enabled=False):
            with torch.no_grad():
                real = self.compared(pixel_values)
            distances = self.distance(self.compared(reconstructions), real)
        return distances.view(-1, len(pixel_values)).mean(dim=0)
