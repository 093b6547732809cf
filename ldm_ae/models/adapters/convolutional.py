"""The code that autoencoders built from diffusers' convolutional `Encoder` and `Decoder` share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.images.pixels import PixelSpec, of_channels
from ldm_ae.models.interface import Autoencoder
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
        config = self.net.config
        taken, given = (of_channels(channels) for channels in (config.in_channels, config.out_channels))
        if given != taken:
            raise UserError(f"{type(self.net).__name__}: in_channels {taken.channels} differ from out_channels "
                            f"{given.channels}; they must be equal")  # fmt: skip
        return taken.require_supported(type(self.net).__name__)

    @property
    def last_layer(self) -> nn.Parameter:
        return cast(nn.Parameter, self.net.decoder.conv_out.weight)

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
