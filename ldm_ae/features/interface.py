"""The interface of a feature network: a frozen network from images to feature maps."""

from __future__ import annotations

import abc
import logging
import re
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.core.frozen import FrozenNetwork
from ldm_ae.core.precision import INFERENCE_LAYOUT, LAYOUTS

_log = logging.getLogger("ldm_ae")

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's colours in [0, 1], by which most networks normalize."""
RANDOM_SEED = 0
"""Seed of random weights: they are the same in every process and in a resumed run."""


class FeatureNetwork(FrozenNetwork, abc.ABC):
    """A frozen network from images to feature maps. Gradients flow to the images alone.

    A subclass sets `channels` and `identity`, assigns its modules, and computes the maps of normalized images. Its
    users hold it as a submodule that they name in `frozen`, so that checkpoints exclude it.

    Args:
        image_size: Side in pixels to which images are resized, so that they are square; None keeps their size, except
            that sides are rounded to multiples of the patch.
        mean: Mean by which colours in [0, 1] are normalized.
        std: Standard deviation by which they are normalized.
        multiple: Sides of images must be multiples of this, such as the side of a patch.
    """

    name: str
    """What a score by this network is called, such as `dinov2_small`."""
    channels: tuple[int, ...]
    """Number of channels of each map that `forward` returns."""
    identity: str
    """Name and hash of the weights, for protocols and the record of a run."""
    has_classifier: bool = False
    """Whether `logits` works."""
    short_names: ClassVar[tuple[str, ...]] = ()

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        image_size: int | None = None,
        *,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        multiple: int = 1,
    ):
        super().__init__()
        self.name = identifier(type(self).__name__)
        if image_size is not None and (image_size < multiple or image_size % multiple):
            raise UserError(
                f"image_size of {type(self).__name__}: expected a positive multiple of {multiple}, got {image_size}"
            )
        self.image_size, self.multiple = image_size, multiple
        # Of pixel values in [-1, 1]. Buffers of the network itself stay in float32.
        self.register_buffer("shift", 2 * torch.tensor(mean).view(1, -1, 1, 1) - 1, persistent=False)
        self.register_buffer("scale", 2 * torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    @classmethod
    def example(cls) -> FeatureNetwork:
        """Return a small instance with random weights for tests."""
        return cls()

    @abc.abstractmethod
    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the maps of normalized images (B, 3, h, w) of a valid size, in the network's dtype."""

    def classify(self, images: Tensor) -> Tensor:  # noqa: ARG002 - subclasses use it
        """Return the logits (B, classes) of normalized images."""
        raise UserError(
            f"{type(self).__name__} has no classifier; use a network with one, such as ResNet50, ConvNeXt or "
            "EfficientNetLite0, with all of its stages"
        )

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Return feature maps, the coarsest last.

        Args:
            pixel_values: (B, 3, H, W) in about [-1, 1], of any size.

        Returns:
            One tensor (B, C_i, h_i, w_i) for each of `channels`, in the network's dtype.
        """
        return self.maps(self.prepare(pixel_values))

    def logits(self, pixel_values: Tensor) -> Tensor:
        """Return the classifier's logits (B, classes) in float32.

        Args:
            pixel_values: (B, 3, H, W) in about [-1, 1], of any size.

        Raises:
            UserError: The network has no classifier.
        """
        return self.classify(self.prepare(pixel_values)).float()

    def prepare(self, pixel_values: Tensor) -> Tensor:
        """Resize and normalize images (B, 3, H, W) in about [-1, 1], for `maps`."""
        images = pixel_values.float()
        size = self.input_size(*images.shape[-2:])
        if size != tuple(images.shape[-2:]):
            images = F.interpolate(images, size=size, mode="bicubic", align_corners=False, antialias=True)
        images = ((images - self.shift) / self.scale).to(self.dtype)
        return images.contiguous(memory_format=LAYOUTS[INFERENCE_LAYOUT])

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size in pixels at which the network sees an image."""
        if self.image_size is not None:
            return self.image_size, self.image_size
        height, width = (max(round(side / self.multiple), 1) * self.multiple for side in (height, width))
        return height, width

    def warn_about_random_weights(self) -> str:
        """Log that the weights are random, and return their identity."""
        _log.warning("%s has random weights; its features have no meaning", type(self).__name__)
        return f"{type(self).__name__} (random weights, seed {RANDOM_SEED})"


def chosen_layers(layers: Sequence[int] | None, count: int, default: Sequence[int]) -> tuple[int, ...]:
    """Return the numbers of the chosen layers of `count`, in ascending order; negative ones count from the end.

    Raises:
        UserError: There are none, or one is out of range.
    """
    chosen = list(default if layers is None else layers)
    if not chosen or any(not -count <= layer < count for layer in chosen):
        raise UserError(f"layers: expected numbers from 0 to {count - 1} (or -{count} to -1), got {chosen}")
    return tuple(sorted({layer % count for layer in chosen}))


def identifier(text: str) -> str:
    """Return a name in lower case with underscores, for keys of logs and scores."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
