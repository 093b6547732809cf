"""What autoencoders made of diffusers' convolutional `Encoder` and `Decoder` have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.models.interface import Autoencoder


class ConvolutionalAutoencoder(Autoencoder):
    """`net` is a diffusers model with `encoder` and `decoder` and their configuration."""

    net: Any
    """Its class sets it; type checkers do not see its attributes."""

    @property
    def downsample_factor(self) -> int:
        """H / h: each level but the first halves the resolution."""
        return int(2 ** (len(self.net.config.block_out_channels) - 1))

    @property
    def last_layer(self) -> nn.Parameter:
        return cast(nn.Parameter, self.net.decoder.conv_out.weight)

    def encoder_output(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> what the encoder gives, (B, ..., h, w). UserError for a wrong shape."""
        channels = self.net.config.in_channels
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
            raise UserError(f"pixel_values must be (B, {channels}, H, W), got {tuple(pixel_values.shape)}")
        self.latent_spec.latent_size(*pixel_values.shape[-2:])
        return cast(Tensor, self.net.encoder(pixel_values.to(self.last_layer.dtype)))

    def decoder_input(self, latents: Tensor) -> Tensor:
        """Latents in the weights' dtype. UserError for a wrong shape."""
        channels = self.latent_spec.channels
        if latents.ndim != 4 or latents.shape[1] != channels:
            raise UserError(f"latents must be (B, {channels}, h, w), got {tuple(latents.shape)}")
        return latents.to(self.last_layer.dtype)

    def save_config(self, folder: str | Path) -> None:
        self.net.save_config(folder)

    def save_pretrained(self, folder: str | Path) -> None:
        self.net.save_pretrained(folder)

    def compile_parts(self, *, for_training: bool = False) -> None:
        self.net.encoder.compile()
        decoder = self.net.decoder
        for part in [decoder.mid_block, *decoder.up_blocks] if for_training else [decoder]:
            part.compile()

    def enable_gradient_checkpointing(self) -> None:
        self.net.enable_gradient_checkpointing()

    @property
    def sample_size(self) -> int:
        size = self.net.config.sample_size
        return size if isinstance(size, int) else min(size)

    def set_sample_size(self, size: int) -> None:
        self.net.register_to_config(sample_size=size)
