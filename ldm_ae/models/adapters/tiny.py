"""`diffusers.AutoencoderTiny`, a distilled autoencoder (TAESD), behind the project's interface.

Source: https://github.com/madebyollin/taesd. Pixels are in [-1, 1] here as everywhere: the network itself maps them to
[0, 1] and back. Pipelines use its latents as they are, in place of the scaled latents of the autoencoder that it was
distilled from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.models.adapters._deterministic import DeterministicAutoencoder
from ldm_ae.models.adapters._opening import open_pretrained
from ldm_ae.models.adapters.convolutional import require_levels
from ldm_ae.models.spec import LatentSpec


class TinyAutoencoder(DeterministicAutoencoder):
    """A small autoencoder without normalization and posterior: `diffusers.AutoencoderTiny` as `net`.

    Args:
        pretrained: A model folder, a run or a checkpoint of one (`runs/mine@best`), or a name on the Hugging Face hub
            (`madebyollin/taesd`), to start from. All below is then read from it and ignored here.
        encoder_block_out_channels: Number of channels of each resolution level, all equal; there are `len - 1`
            downsamplings by 2.
        decoder_block_out_channels: The same of the decoder, from the lowest resolution to the highest.
        num_encoder_blocks: Number of blocks of each level of the encoder.
        num_decoder_blocks: Number of blocks of each level of the decoder.
        latent_channels: Number of latent channels C.
        act_fn: Activation, by diffusers' name.
        upsample_fn: Enlargement between the decoder's levels, by torch's name.
    """

    short_names = ("tiny", "taesd")
    class_names = ("AutoencoderTiny",)
    takes_scaled_latents = True
    neutral_config = frozenset({"force_upcast", "latent_magnitude", "latent_shift"})

    def __init__(
        self,
        *,
        pretrained: str | None = None,
        encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64),
        decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64),
        num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3),
        num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1),
        latent_channels: int = 4,
        act_fn: str = "relu",
        upsample_fn: str = "nearest",
    ):
        from diffusers import AutoencoderTiny  # takes seconds

        super().__init__()
        if pretrained is not None:
            open_pretrained(self, AutoencoderTiny, pretrained)
            return
        require_levels(encoder_block_out_channels, decoder_block_out_channels)
        for part, widths, blocks in (
            ("encoder", encoder_block_out_channels, num_encoder_blocks),
            ("decoder", decoder_block_out_channels, num_decoder_blocks),
        ):
            if len({*widths}) != 1:
                raise UserError(f"{part}_block_out_channels: the class needs equal widths, got {list(widths)}")
            if len(blocks) != len(widths):
                raise UserError(f"num_{part}_blocks: expected {len(widths)} numbers, one a level, got {list(blocks)}")
        self.net = AutoencoderTiny(
            encoder_block_out_channels=tuple(encoder_block_out_channels),
            decoder_block_out_channels=tuple(decoder_block_out_channels),
            num_encoder_blocks=tuple(num_encoder_blocks),
            num_decoder_blocks=tuple(num_decoder_blocks),
            latent_channels=latent_channels,
            act_fn=act_fn,
            upsample_fn=upsample_fn,
        )

    @classmethod
    def example(cls, class_name: str) -> TinyAutoencoder:
        del class_name
        return cls(
            encoder_block_out_channels=(4, 4), decoder_block_out_channels=(6, 6), num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        )  # fmt: skip

    @property
    def downsample_factor(self) -> int:
        return int(2 ** (len(self.net.config.encoder_block_out_channels) - 1))

    def latents(self) -> LatentSpec:
        config = self.net.config
        enlarged = config.upsampling_scaling_factor ** (len(config.decoder_block_out_channels) - 1)
        if enlarged != self.downsample_factor:
            raise UserError(
                f"{type(self.net).__name__}: the encoder divides the sides by {self.downsample_factor}, and the "
                f"decoder multiplies them by {enlarged}; they must be equal"
            )
        return super().latents()

    @property
    def last_layer(self) -> nn.Parameter:
        return cast(nn.Parameter, self.net.decoder.layers[-1].weight)

    @property
    def encoder_last_layer(self) -> nn.Parameter:
        return cast(nn.Parameter, self.net.encoder.layers[-1].weight)

    def encoder_output(self, pixel_values: Tensor) -> Tensor:
        encoder = self.net.encoder
        if not (encoder.gradient_checkpointing and torch.is_grad_enabled()):
            return super().encoder_output(pixel_values)
        # With gradient checkpointing, the encoder's own forward pass in diffusers 0.42 does not map pixels to [0, 1].
        self.require_images(pixel_values)
        positive = pixel_values.to(self.dtype).add(1).div(2)
        return cast(Tensor, encoder._gradient_checkpointing_func(encoder.layers, positive))

    def compilable_parts(self, *, for_training: bool = False) -> Sequence[nn.Module]:
        net = self.net
        parts = [layer for layer in net.decoder.layers[:-1] if next(layer.parameters(), None) is not None]
        return [net.encoder, *(parts if for_training else [net.decoder])]
