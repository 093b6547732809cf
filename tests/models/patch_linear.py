"""A network class that has nothing in common with AutoencoderKL: each patch of pixels is one linear layer's input.

As another package would add it by an entry point of the group `ldm_ae.plugins`.
"""

from __future__ import annotations

from typing import cast

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from ldm_ae.images.pixels import RGB
from ldm_ae.models import Autoencoder, AutoencoderSpec, DeterministicPosterior, LatentSpec
from ldm_ae.models.loading.networks import read_network


class PatchLinear(ModelMixin, ConfigMixin):
    """No `conv_out`, no `block_out_channels`, no `sample_size`."""

    @register_to_config
    def __init__(self, width: int = 6, patch: int = 4, scaling_factor: float = 1.0):
        super().__init__()
        self.down = nn.Linear(3 * patch * patch, width)
        self.up = nn.Linear(width, 3 * patch * patch)


class PatchLinearAutoencoder(Autoencoder):
    """`PatchLinear` behind the interface.

    Args:
        pretrained: A model folder to start from.
        width: Channels of the latents.
    """

    class_names = ("PatchLinear",)
    decoder_names = ("up.",)

    def __init__(self, *, pretrained: str | None = None, width: int = 6):
        super().__init__()
        self.net = PatchLinear(width) if pretrained is None else read_network(PatchLinear, pretrained)

    @property
    def spec(self) -> AutoencoderSpec:
        config = self.net.config
        latents = LatentSpec(
            channels=config.width, downsample_factor=config.patch, scaling_factor=config.scaling_factor
        )
        return AutoencoderSpec(pixels=RGB, latents=latents)

    def encode(self, pixel_values: Tensor) -> DeterministicPosterior:
        self.require_images(pixel_values)
        patches = nn.functional.pixel_unshuffle(pixel_values.to(self.dtype), self.net.config.patch)
        return DeterministicPosterior(self._linear(self.net.down, patches).float())

    def decode(self, latents: Tensor) -> Tensor:
        self.require_latents(latents)
        patches = self._linear(self.net.up, latents.to(self.dtype))
        return nn.functional.pixel_shuffle(patches, self.net.config.patch).float()

    @staticmethod
    def _linear(layer: nn.Module, values: Tensor) -> Tensor:
        return cast(Tensor, layer(values.movedim(1, -1)).movedim(-1, 1))
