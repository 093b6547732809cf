"""Images of several specifications, and a model of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm_ae.images.missing import MISSING
from ldm_ae.images.pixels import GREY, RGB, RGBA, PixelSpec
from ldm_ae.models import Autoencoder, AutoencoderSpec, DeterministicPosterior, LatentSpec

BANDS = ("blue", "green", "red", "nir", "swir")
FIVE = PixelSpec(channels=5, meaning="channels", names=BANDS, bits=16)
"""Five channels of 16 bits, three of which have the names of colours."""
PLAIN_FIVE = PixelSpec(channels=5, meaning="channels")
"""Five channels without names, for which no view is the default."""
GAPS = PixelSpec(
    channels=2, meaning="channels", names=("height", "slope"), bits=0, low=(-10.0,), high=(30.0,), missing=-9999
)
"""Two floating-point channels with missing data."""
SPECS = {"rgb": RGB, "grey": GREY, "rgba": RGBA, "five": FIVE}


def images(pixels: PixelSpec, count: int = 2, size: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return reconstructions and smooth images of 8-bit levels, (count, C, size, size) each."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, pixels.channels, 5, 5, generator=generator) * 1.8 - 0.9
    smooth = nn.functional.interpolate(coarse, size=size, mode="bilinear")
    pixel_values = ((smooth + 1) * 127.5).round() / 127.5 - 1
    reconstructions = pixel_values + 0.1 * torch.randn(pixel_values.shape, generator=generator)
    if pixels.missing is not None:
        pixel_values[:, :, : size // 4] = MISSING
    return reconstructions, pixel_values


class PatchModel(Autoencoder):
    """Linear layers from patches of 4x4 pixels to latents and back."""

    def __init__(self, pixels: PixelSpec, seed: int = 0):
        super().__init__()
        self.pixels = pixels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = nn.ModuleDict(
                {"down": nn.Conv2d(pixels.channels, 4, 4, stride=4), "up": nn.Conv2d(4, pixels.channels * 16, 1)}
            )

    @property
    def spec(self) -> AutoencoderSpec:
        latents = LatentSpec(channels=4, downsample_factor=4, scaling_factor=1.0)
        return AutoencoderSpec(pixels=self.pixels, latents=latents)

    @property
    def last_layer(self) -> nn.Parameter:
        weight: nn.Parameter = self.net["up"].weight
        return weight

    def encode(self, pixel_values: Tensor) -> DeterministicPosterior:
        self.require_images(pixel_values)
        return DeterministicPosterior(self.net["down"](pixel_values))

    def decode(self, latents: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(self.net["up"](latents), 4)
