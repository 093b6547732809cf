"""The code that autoencoders built from a convolutional encoder and decoder of diffusers share.

They call the network's `encoder` and `decoder` directly, so that its own slicing and tiling are never used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.models.channels import pixels_of
from ldm_ae.models.interface import Autoencoder
from ldm_ae.models.scaling import factor_beside_vectors
from ldm_ae.models.spec import AutoencoderSpec, LatentSpec
from ldm_ae.models.wrappers.exact_tiling import has_bands


class ConvolutionalAutoencoder(Autoencoder):
    """An autoencoder whose `net` is a diffusers model with `encoder`, `decoder` and their configuration."""

    decoder_names = ("decoder.", "post_quant_conv.")

    @property
    def downsample_factor(self) -> int:
        """H / h: each level but the first halves the resolution."""
        return int(2 ** (len(self.net.config.block_out_channels) - 1))

    def pixels(self) -> PixelSpec:
        """The images of both ends, which must be equal; UserError if the project does not support such images."""
        return pixels_of(self.net)

    def latents(self) -> LatentSpec:
        """The latents and their scale."""
        return self.configured_latents()

    def configured_latents(self, **others: Any) -> LatentSpec:
        """Return the latents with the scale in the configuration.

        Args:
            others: Fields that are not in the configuration, or not under their names.
        """
        config = self.net.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        fields: dict[str, Any] = {
            "channels": config.latent_channels,
            "downsample_factor": self.downsample_factor,
            "scaling_factor": factor_beside_vectors(config.get("scaling_factor", 1.0), mean, std),
            "shift_factor": config.get("shift_factor") or 0.0,
            "latents_mean": None if mean is None else tuple(mean),
            "latents_std": None if std is None else tuple(std),
        }
        return LatentSpec(**(fields | others))

    @property
    def spec(self) -> AutoencoderSpec:
        return AutoencoderSpec(pixels=self.pixels(), latents=self.latents())

    @property
    def last_layer(self) -> nn.Parameter:
        return cast(nn.Parameter, self.net.decoder.conv_out.weight)

    @property
    def encoder_last_layer(self) -> nn.Parameter:
        return cast(nn.Parameter, self.net.encoder.conv_out.weight)

    def encoder_output(self, pixel_values: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) in [-1, 1] to the encoder's output (B, ..., h, w). UserError for other images."""
        self.require_images(pixel_values)
        return cast(Tensor, self.net.encoder(pixel_values.to(self.dtype)))

    def decoder_input(self, latents: Tensor) -> Tensor:
        """Return the latents in the weights' dtype. UserError for a wrong shape."""
        self.require_latents(latents)
        return latents.to(self.dtype)

    def compilable_parts(self, *, for_training: bool = False) -> Sequence[nn.Module]:
        net = self.net
        return [net.encoder, *([net.decoder.mid_block, *net.decoder.up_blocks] if for_training else [net.decoder])]

    def exact_parts(self) -> Sequence[nn.Module]:
        parts = [self.net.encoder, self.net.decoder]
        return parts if all(map(has_bands, parts)) else ()


def require_levels(encoder: Sequence[int], decoder: Sequence[int]) -> None:
    """Raise UserError unless encoder and decoder have equally many resolution levels."""
    if len(encoder) != len(decoder):
        raise UserError(
            f"the encoder has {len(encoder)} levels and the decoder {len(decoder)}; give as many widths for both"
        )
