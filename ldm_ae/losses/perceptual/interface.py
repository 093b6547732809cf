"""The interface of a perceptual loss: a distance of two images, measured by frozen networks."""

from __future__ import annotations

import abc
from collections.abc import Sequence

from torch import Tensor

from ldm_ae.core.frozen import FrozenNetwork
from ldm_ae.images.pixels import RGB, PixelSpec


class PerceptualLoss(FrozenNetwork, abc.ABC):
    """A distance of images, with the frozen networks that it is measured by. Distances are always float32.

    Args:
        name: What a score by this distance is called.
    """

    pixels: PixelSpec | None = RGB
    """Supported images; None for any number of channels. For a model of other images, a run and an evaluation show RGB
    images of them (`ldm_ae.images.views`)."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    @classmethod
    def example(cls) -> PerceptualLoss:
        """Return a small instance for tests, which needs no weights."""
        return cls()  # type: ignore[call-arg]

    @property
    def identity(self) -> str:
        """The distance and the weights that it is measured by, for protocols."""
        return self.name

    def measure(self, reconstructions: Tensor, pixel_values: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the distance of each pair, and the distances that it is a sum of, by name; (B,) each."""
        return self(reconstructions, pixel_values), {}

    @abc.abstractmethod
    def forward(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        """Return the distance of each pair, (B,) float32, at least 0.

        Args:
            reconstructions: (B, 3, H, W) in about [-1, 1]; only these receive a gradient.
            pixel_values: (B, 3, H, W) in [-1, 1].
        """


def try_size(network: PerceptualLoss, images: Sequence[Tensor]) -> None:
    """Measure one image, which raises PyTorch's error for images that are too small.

    Args:
        network: Any perceptual loss.
        images: One tensor, (B, 3, H, W).
    """
    network(images[0][:1], images[0][:1])
