"""A discriminator over mixed features of a frozen classifier (Projected GAN).

Source: Sauer et al., Projected GANs Converge Faster, arXiv 2111.01007, section 3, with the layout of the authors'
code for EfficientNet-Lite0.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ldm_ae.core.errors import UserError
from ldm_ae.discriminators.interface import Discriminator
from ldm_ae.features import EfficientNetLite0, FeatureNetwork
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.images.views import View

_WIDTHS = (64, 128, 256, 512)
"""Channels of the discriminators' maps, from fine to coarse. All end at the last."""


class ProjectedDiscriminator(Discriminator):
    """A small discriminator on each of the maps, which are mixed by random convolutions that are never trained.

    All convolutions that are trained have spectral norm 1. Each forward pass improves the estimate of the norms.

    Args:
        features: The network, with up to four maps. Null takes EfficientNet-Lite0 at 224 pixels, whose weights come
            with `ldm_ae[offline]`.
        channels: Channels of the finest mixed map; each coarser one has twice as many.
        norm: Normalization in the discriminators. `batch` is the authors'; it mixes the images of a batch, so that
            results depend on the number of processes and the accumulation. `group` does not.
        seed: Seed of the random mixing.
    """

    short_names = ("projected",)
    frozen = ("features", "mixing")

    def __init__(
        self,
        *,
        features: FeatureNetwork | None = None,
        channels: int = 64,
        norm: Literal["batch", "group"] = "batch",
        seed: int = 0,
    ):
        super().__init__()
        features = EfficientNetLite0(image_size=224) if features is None else features
        count = len(features.channels)
        if not 1 <= count <= len(_WIDTHS):
            raise UserError(f"ProjectedDiscriminator: expected features with 1 to {len(_WIDTHS)} maps, got {count}")
        if channels < 1:
            raise UserError(f"ProjectedDiscriminator: channels: expected at least 1, got {channels}")
        self.features = features
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.mixing = Mixing(features.channels, channels)
        # A discriminator halves its map as often as needed, so that all have logits for areas of the same size.
        self.discriminators = nn.ModuleList(
            _discriminator([width, *_WIDTHS[len(_WIDTHS) - count + i :]], norm)
            for i, width in enumerate(self.mixing.widths)
        )
        self.seed = seed

    @classmethod
    def example(cls) -> ProjectedDiscriminator:
        return cls(features=EfficientNetLite0(weights=None, layers=(1, 2), image_size=64), channels=8, norm="group")

    def prepare(self, pixels: PixelSpec, view: View | None = None) -> None:
        self.see_rgb(pixels, view)

    @property
    def identity(self) -> str:
        return f"{super().identity} with {self.features.identity}, mixing seed {self.seed}"

    def forward(self, pixel_values: Tensor) -> Tensor:
        maps = self.mixing([found.float() for found in self.features(pixel_values)])
        logits = [network(found) for network, found in zip(self.discriminators, maps, strict=True)]
        return torch.cat([found.flatten(1) for found in logits], dim=1)


class Mixing(nn.Module):
    """Random mixing across channels within each map, then across scales from the coarsest map to the finest."""

    def __init__(self, in_channels: Sequence[int], channels: int):
        super().__init__()
        mixed = [channels * 2**i for i in range(len(in_channels))]
        self.widths = [channels, *mixed[:-1]]
        self.across_channels = nn.ModuleList(nn.Conv2d(*pair, 1) for pair in zip(in_channels, mixed, strict=True))
        self.across_scales = nn.ModuleList(nn.Conv2d(*pair, 1) for pair in zip(mixed, self.widths, strict=True))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return a map of twice the size for each of the maps, which are ordered from fine to coarse."""
        found: list[Tensor] = []
        below: Tensor | None = None
        for i in reversed(range(len(maps))):
            mixed = self.across_channels[i](maps[i])
            mixed = mixed if below is None else mixed + below
            size = maps[i - 1].shape[-2:] if i else [2 * side for side in mixed.shape[-2:]]
            below = self.across_scales[i](F.interpolate(mixed, size=size, mode="bilinear", align_corners=True))
            found.insert(0, below)
        return found


def _discriminator(widths: Sequence[int], norm: str) -> nn.Sequential:
    """Return a network that halves a map once for each width after the first one, and ends in logits."""
    layers: list[nn.Module] = []
    for in_channels, out_channels in pairwise(widths):
        normalization = nn.BatchNorm2d(out_channels) if norm == "batch" else nn.GroupNorm(32, out_channels)
        # Batch normalization removes a bias.
        convolution = nn.Conv2d(in_channels, out_channels, 4, stride=2, padding=1, bias=norm != "batch")
        layers += [spectral_norm(convolution), normalization, nn.LeakyReLU(0.2)]
    layers.append(spectral_norm(nn.Conv2d(widths[-1], 1, 4, bias=False)))
    return nn.Sequential(*layers)
