"""A regularizer and a discriminator that use all that their interfaces offer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_ae.core.draws import Draws
from ldm_ae.discriminators import Discriminator
from ldm_ae.models import KLAutoencoder
from ldm_ae.regularizers import Chain, GaussianNoise, Regularized, Regularizer
from ldm_ae.regularizers.channel_prefix_mask import ChannelPrefixMask
from ldm_ae.regularizers.eq_vae import EQVAE
from ldm_ae.regularizers.free_bits import FreeBits
from ldm_ae.regularizers.normalized_latents import NormalizedLatents
from ldm_ae.regularizers.scale_equivariance import ScaleEquivariance


def turned(images: Tensor, quarters: Tensor) -> Tensor:
    """Each of (B, C, H, H) by its number of quarter turns."""
    return torch.stack([torch.rot90(image, int(k), (1, 2)) for image, k in zip(images, quarters, strict=True)])


class Turn(Regularizer):
    """Turns latents and target of each sample alike, scales latents by a learned gain, and has a term.

    The term is the distance of a frozen network's features of the image from the posterior's mean.
    """

    frozen = ("features",)

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((4, 1, 1), 1.5))
        self.features = nn.Conv2d(3, 4, 2, stride=2)
        for number, parameter in enumerate(self.features.parameters()):
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.3

    def forward(self, posterior: Any, latents: Tensor, pixel_values: Tensor, draws: Draws) -> Regularized:
        quarters = draws.integers(0, 4)
        distance = (self.features(pixel_values).float() - posterior.mode()).square().sum(dim=(1, 2, 3))
        return Regularized(
            turned(self.gain * latents, quarters), turned(pixel_values, quarters), {"alignment": distance}
        )


TERMS = {"kl": 1e-4, "alignment": 1e-3}
"""Weights for a KL autoencoder with `Turn`."""


def every_kind(probability: float = 1.0) -> Chain:
    """All that regularizers do, prepared for a downsample factor of 2: sizes, second decodes, draws, statistics."""
    found = Chain(
        regularizers=(
            ScaleEquivariance(), EQVAE(probability=probability, small_image_probability=1.0, smallest_scale=0.5),
            GaussianNoise(gamma=0.5), ChannelPrefixMask(channels=(2, 3, 4)), FreeBits(free_nats=0.5),
            NormalizedLatents(),
        )
    )  # fmt: skip
    found.prepare(KLAutoencoder.example("AutoencoderKL"))
    return found


CHAIN_TERMS = {"free_bits_kl": 1e-3}
"""Weights for a KL autoencoder with `every_kind`."""


class Adaptive(Turn):
    """`Turn` with two terms whose weights are adaptive, of which one is of the latents that are decoded."""

    adaptive_terms = frozenset({"alignment", "size"})

    def forward(self, posterior: Any, latents: Tensor, pixel_values: Tensor, draws: Draws) -> Regularized:
        found = super().forward(posterior, latents, pixel_values, draws)
        size = (self.gain * latents).float().abs().sum(dim=(1, 2, 3))
        return found._replace(terms=found.terms | {"size": size})


ADAPTIVE = {"kl": 1e-4, "alignment": 0.3, "size": 0.1}
"""Weights for a KL autoencoder with `Adaptive`."""


class Backboned(Discriminator):
    """A head on a frozen backbone with batch normalization, with an augmentation, R1 at even steps, and LeCam."""

    frozen = ("backbone",)
    needs_double_backward = True

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Softplus())
        self.head = nn.Conv2d(8, 1, 3, padding=1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        self.register_buffer("average_real", torch.zeros(()))
        self.register_buffer("average_fake", torch.zeros(()))

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(self.backbone(pixel_values))

    def augment(self, pixel_values: Tensor, draws: Draws) -> Tensor:
        brightness = draws.uniform(1, 1, 1).to(pixel_values) - 0.5
        return turned(pixel_values, draws.integers(0, 4)) + brightness

    def penalty(self, real: Tensor, fake: Tensor, logits: tuple[Tensor, Tensor], step: int) -> Tensor:
        logits_real, logits_fake = logits
        found = F.relu(logits_real.float() - self.average_fake).square().mean()
        found = 0.1 * (found + F.relu(self.average_real - logits_fake.float()).square().mean())
        if step % 2 == 0:
            real = real.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self(real).float().mean(dim=(1, 2, 3)).sum(), real, create_graph=True)
            found = found + 0.5 * gradient.square().sum(dim=(1, 2, 3)).mean()
        return found

    def learn(self, logits_real: Tensor, logits_fake: Tensor) -> None:
        self.average_real.lerp_(logits_real, 0.1)
        self.average_fake.lerp_(logits_fake, 0.1)
