"""The interface of a perceptual loss: a distance of two images, measured by frozen networks."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm_ae.core.precision import INFERENCE_LAYOUT, LAYOUTS
from ldm_ae.images.pixels import RGB, PixelSpec


class PerceptualLoss(nn.Module, abc.ABC):
    """A distance of images, with the frozen networks that it is measured by.

    Modules and parameters are frozen and in eval mode from the moment that they are assigned. The networks' weights
    are kept in the dtype that they compute in (`set_precision`): autocast would cast frozen weights anew at every call.

    Args:
        name: What a score by this distance is called.
    """

    pixels: PixelSpec = RGB
    """Supported images; a run and an evaluation compare them with the model's."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name
        self.dtype = torch.float32
        self.eval()

    @abc.abstractmethod
    def forward(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        """Return the distance of each pair, (B,) float32, at least 0.

        Args:
            reconstructions: (B, 3, H, W) in about [-1, 1]; only these receive a gradient.
            pixel_values: (B, 3, H, W) in [-1, 1].
        """

    def set_precision(self, dtype: torch.dtype) -> PerceptualLoss:
        """Compute in `dtype`, channels-last; distances are always float32.

        Submodules are cast. The loss's own parameters and buffers stay in float32.
        """
        self.dtype = dtype
        for network in self.children():
            if isinstance(network, PerceptualLoss):
                network.set_precision(dtype)
            else:
                network.to(dtype=dtype, memory_format=LAYOUTS[INFERENCE_LAYOUT])  # type: ignore[call-overload]
        return self

    def train(self, mode: bool = True) -> PerceptualLoss:  # noqa: ARG002 - the signature is torch's
        """Stay in eval mode: the network is a measuring instrument."""
        return super().train(False)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, nn.Module):
            value.eval()
        if isinstance(value, nn.Module | nn.Parameter):
            value.requires_grad_(False)
        super().__setattr__(name, value)


def try_size(network: PerceptualLoss, images: Sequence[Tensor]) -> None:
    """Measure one image, which raises PyTorch's error for images that are too small.

    Args:
        network: Any perceptual loss.
        images: One tensor, (B, 3, H, W).
    """
    network(images[0][:1], images[0][:1])
