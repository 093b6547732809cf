"""A discriminator of the features of a frozen vision transformer, which has little to learn itself.

Source: Sauer et al., StyleGAN-T, arXiv 2301.09515, section 3.2, as in Zheng et al., Diffusion Transformers with
Representation Autoencoders (RAE), arXiv 2510.11690. Where RAE's published code differs from this description it is not
followed: it has a fifth head, over the last block a second time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ldm_ae.core.errors import UserError
from ldm_ae.discriminators.interface import Discriminator
from ldm_ae.features import DINO, FeatureNetwork
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.images.views import View

_EPS = 1e-6


class DINODiscriminator(Discriminator):
    """A head for each feature map, over the sequence of its places; logits for each place of each map.

    A head has a 1x1 convolution, a residual convolution along the sequence, which is closed to a circle, and a 1x1
    convolution to logits, all of spectral norm 1. Each image is normalized by itself, as in RAE's code. Each forward
    pass improves the estimate of the norms.

    Args:
        features: The network. Null takes RAE's: DINO-S/8 at 224 pixels, blocks 2, 5, 8 and 11.
        kernel_size: Kernel of the residual convolution.
    """

    short_names = ("dino",)
    frozen = ("features",)

    def __init__(self, *, features: FeatureNetwork | None = None, kernel_size: int = 9):
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise UserError(f"DINODiscriminator: kernel_size: expected an odd number of at least 1, got {kernel_size}")
        if features is None:
            features = DINO(weights="facebook/dino-vits8", layers=[2, 5, 8, 11], normalized=False, image_size=224)
        self.features = features
        self.heads = nn.ModuleList(Head(channels, kernel_size) for channels in features.channels)

    @classmethod
    def example(cls) -> DINODiscriminator:
        return cls(features=DINO.example())

    def prepare(self, pixels: PixelSpec, view: View | None = None) -> None:
        self.see_rgb(pixels, view)

    @property
    def identity(self) -> str:
        return f"{super().identity} with {self.features.identity}"

    def forward(self, pixel_values: Tensor) -> Tensor:
        maps: Sequence[Tensor] = self.features(pixel_values)
        logits = [head(found.float().flatten(2)) for head, found in zip(self.heads, maps, strict=True)]
        return torch.cat(logits, dim=1)


class Head(nn.Module):
    """Logits (B, L) of a sequence (B, C, L)."""

    def __init__(self, channels: int, kernel_size: int):
        super().__init__()
        self.first = Layer(channels, 1)
        self.residual = Layer(channels, kernel_size)
        self.out = spectral_norm(nn.Conv1d(channels, 1, 1))

    def forward(self, sequence: Tensor) -> Tensor:
        """Return one logit for each place."""
        hidden = self.first(sequence)
        hidden = (self.residual(hidden) + hidden) / math.sqrt(2)
        logits: Tensor = self.out(hidden)
        return logits.squeeze(1)


class Layer(nn.Module):
    """A circular convolution, normalization of each image and channel, and LeakyReLU(0.2)."""

    def __init__(self, channels: int, kernel_size: int):
        super().__init__()
        # The normalization removes a bias.
        convolution = nn.Conv1d(
            channels, channels, kernel_size, padding=kernel_size // 2, padding_mode="circular", bias=False
        )
        self.convolution = spectral_norm(convolution)
        self.norm = nn.GroupNorm(channels, channels, eps=_EPS)  # one group a channel: instance normalization

    def forward(self, sequence: Tensor) -> Tensor:
        """Return (B, C, L)."""
        return F.leaky_relu(self.norm(self.convolution(sequence)), 0.2)
