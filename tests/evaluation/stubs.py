"""A model that returns its input, and batches of images."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from ldm_ae.images.pixels import RGB
from ldm_ae.models import Autoencoder, AutoencoderSpec, LatentSpec, Posterior
from tests.pictures import smooth_picture


@dataclass
class Batch:
    pixel_values: Tensor
    keys: list[str]


@dataclass
class Loader:
    batches: list[Batch]
    rejected: dict[str, str] = field(default_factory=dict)

    def __iter__(self):
        return iter(self.batches)


def pictures(count: int, size: int = 32) -> Tensor:
    """(count, 3, size, size) of 8-bit levels in [-1, 1]."""
    images = [torch.from_numpy(np.array(smooth_picture(i, size, size))) for i in range(count)]
    return torch.stack(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def loader(count: int = 6, batch_size: int = 4, size: int = 32, keys: list[str] | None = None) -> Loader:
    images = pictures(count, size)
    keys = keys if keys is not None else [f"{i:03d}.png" for i in range(count)]
    return Loader(
        [Batch(images[i : i + batch_size], keys[i : i + batch_size]) for i in range(0, count, batch_size)],
        {"broken.jpg": "truncated"},
    )


class PointPosterior(Posterior):
    """All mass on one value, not Gaussian, without a rate."""

    def __init__(self, latents: Tensor):
        self._latents = latents

    def sample(self, generator: torch.Generator | None = None, *, noise: Tensor | None = None) -> Tensor:
        return self._latents

    def mode(self) -> Tensor:
        return self._latents

    def regularization(self) -> dict[str, Tensor]:
        return {}

    def rate(self) -> Tensor | None:
        return None


class IdentityAutoencoder(Autoencoder):
    """The latents are the pixels, plus `offset` when decoded."""

    def __init__(self, offset: float = 0.0):
        super().__init__()
        self.net = nn.Identity()
        self.offset = offset

    @property
    def spec(self) -> AutoencoderSpec:
        return AutoencoderSpec(pixels=RGB, latents=LatentSpec(channels=3, downsample_factor=1, scaling_factor=1.0))

    def encode(self, pixel_values: Tensor) -> Posterior:
        return PointPosterior(pixel_values)

    def decode(self, latents: Tensor) -> Tensor:
        return latents.float() + self.offset


class MeanDistance:
    """A perceptual distance with a value that a test can work out."""

    name = "mean_distance"

    def __call__(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        return (reconstructions - pixel_values).abs().mean(dim=(1, 2, 3))


class PixelFeatures:
    """Mean and standard deviation of each colour: 6 features."""

    name = "colour"
    dim = 6
    preprocessing = "none"

    def __call__(self, pixel_values: Tensor) -> Tensor:
        flat = pixel_values.flatten(2)
        return torch.cat([flat.mean(dim=2), flat.std(dim=2)], dim=1)
