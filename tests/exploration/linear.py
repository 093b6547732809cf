"""A linear autoencoder between images of 4 x 4 pixels and vectors or maps, whose decoder is known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm_ae.images.pixels import RGB
from ldm_ae.models import Autoencoder, AutoencoderSpec, GaussianPosterior, LatentSpec, Posterior

PIXELS = 3 * 4 * 4


class LinearAutoencoder(Autoencoder):
    """An orthogonal projection of images to `channels` numbers, (B, channels, 1, 1), and its transpose as decoder."""

    def __init__(self, channels: int = 6, *, std: float = 0.5):
        super().__init__()
        self.net = nn.Linear(PIXELS, channels, bias=False)
        self.net.config = {}  # type: ignore[assignment]  # as a network of diffusers has it
        self.std = std
        with torch.no_grad():
            self.net.weight.copy_(torch.linalg.qr(torch.randn(PIXELS, channels))[0].T)

    @property
    def spec(self) -> AutoencoderSpec:
        latents = LatentSpec(channels=len(self.net.weight), downsample_factor=4, scaling_factor=2.0, image_size=4)
        return AutoencoderSpec(pixels=RGB, latents=latents)

    sample_size = 4  # type: ignore[assignment]
    has_moments = True

    def encode(self, pixel_values: Tensor) -> Posterior:
        mean = self.net(pixel_values.flatten(1))[:, :, None, None]
        return GaussianPosterior(torch.cat([mean, torch.full_like(mean, 2 * torch.tensor(self.std).log())], dim=1))

    def decode(self, latents: Tensor) -> Tensor:
        return (latents.flatten(1) @ self.net.weight).view(-1, 3, 4, 4)
