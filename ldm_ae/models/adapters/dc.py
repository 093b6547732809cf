"""`diffusers.AutoencoderDC`, the deep-compression autoencoder, behind the project's interface.

Source: Chen et al., Deep Compression Autoencoder for Efficient High-Resolution Diffusion Models, arXiv 2410.10733.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

from torch import nn

from ldm_ae.core.errors import UserError
from ldm_ae.models.adapters._deterministic import DeterministicAutoencoder
from ldm_ae.models.adapters._opening import open_pretrained
from ldm_ae.models.adapters.convolutional import require_levels


class DCAutoencoder(DeterministicAutoencoder):
    """A deep-compression autoencoder (f32 to f128, without a posterior): `diffusers.AutoencoderDC` as `net`.

    Args:
        pretrained: A model folder, a run or a checkpoint of one (`runs/mine@best`), or a name on the Hugging Face hub
            (`mit-han-lab/dc-ae-f32c32-sana-1.0-diffusers`), to start from. All below is then read from it and ignored
            here.
        block_out_channels: Number of channels of each resolution level; there are `len - 1` downsamplings by 2.
        decoder_block_out_channels: The same of the decoder; null for equal ones.
        encoder_layers_per_block: Number of blocks of each level; 0 is possible for the first, which then only changes
            the resolution.
        decoder_layers_per_block: The same of the decoder.
        latent_channels: Number of latent channels C; it must divide the last width.
        attention_levels: Levels (0 is the full resolution) with linear attention (`EfficientViTBlock`) in place of
            ResNet blocks.
        attention_head_dim: Channels of an attention head; it must divide the widths of `attention_levels`.
        qkv_multiscales: Kernel sizes of the additional queries, keys and values of linear attention.
        downsample_block_type: `pixel_unshuffle`, or `conv` for convolutions with stride 2.
        upsample_block_type: `pixel_shuffle`, or `interpolate` for nearest-neighbour enlargement.
    """

    short_names = ("dc", "dc-ae")
    class_names = ("AutoencoderDC",)

    def __init__(
        self,
        *,
        pretrained: str | None = None,
        block_out_channels: tuple[int, ...] = (128, 256, 512, 512, 1024, 1024),
        decoder_block_out_channels: tuple[int, ...] | None = None,
        encoder_layers_per_block: tuple[int, ...] = (2, 2, 2, 3, 3, 3),
        decoder_layers_per_block: tuple[int, ...] = (3, 3, 3, 3, 3, 3),
        latent_channels: int = 32,
        attention_levels: tuple[int, ...] = (3, 4, 5),
        attention_head_dim: int = 32,
        qkv_multiscales: tuple[int, ...] = (5,),
        downsample_block_type: Literal["pixel_unshuffle", "conv"] = "pixel_unshuffle",
        upsample_block_type: Literal["pixel_shuffle", "interpolate"] = "pixel_shuffle",
    ):
        from diffusers import AutoencoderDC  # takes seconds

        super().__init__()
        if pretrained is not None:
            open_pretrained(self, AutoencoderDC, pretrained)
            return
        encoder, decoder = tuple(block_out_channels), tuple(decoder_block_out_channels or block_out_channels)
        require_levels(encoder, decoder)
        levels = range(len(encoder))
        for name, layers in (("encoder", encoder_layers_per_block), ("decoder", decoder_layers_per_block)):
            if len(layers) != len(encoder) or layers[0] < 0 or min(layers[1:], default=1) < 1:
                raise UserError(
                    f"{name}_layers_per_block: expected {len(encoder)} numbers of blocks, of which only the first may "
                    f"be 0, got {list(layers)}"
                )
        if bad := [level for level in attention_levels if level not in levels]:
            raise UserError(f"attention_levels: expected levels from 0 to {len(encoder) - 1}, got {bad[0]}")
        heads = [width for level in attention_levels for width in (encoder[level], decoder[level])]
        if bad := [width for width in heads if width % attention_head_dim]:
            raise UserError(f"block_out_channels: {bad[0]} is not divisible by attention_head_dim={attention_head_dim}")
        if bad := [width for width in (encoder[-1], decoder[-1]) if width % latent_channels]:
            raise UserError(f"block_out_channels: {bad[0]} is not divisible by latent_channels={latent_channels}")
        blocks = tuple("EfficientViTBlock" if level in attention_levels else "ResBlock" for level in levels)
        scales = tuple(tuple(qkv_multiscales) if level in attention_levels else () for level in levels)
        self.net = AutoencoderDC(
            latent_channels=latent_channels,
            attention_head_dim=attention_head_dim,
            encoder_block_types=blocks,
            decoder_block_types=blocks,
            encoder_block_out_channels=encoder,
            decoder_block_out_channels=decoder,
            encoder_layers_per_block=tuple(encoder_layers_per_block),
            decoder_layers_per_block=tuple(decoder_layers_per_block),
            encoder_qkv_multiscales=scales,
            decoder_qkv_multiscales=scales,
            downsample_block_type=downsample_block_type,
            upsample_block_type=upsample_block_type,
        )

    @classmethod
    def example(cls, class_name: str) -> DCAutoencoder:
        del class_name
        return cls(
            block_out_channels=(8, 16), encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
            latent_channels=4, attention_levels=(1,), attention_head_dim=8,
        )  # fmt: skip

    @property
    def downsample_factor(self) -> int:
        return int(2 ** (len(self.net.config.encoder_block_out_channels) - 1))

    @property
    def last_layer(self) -> nn.Parameter:
        # Where the first level has no blocks, the last layer also enlarges the image.
        last = self.net.decoder.conv_out
        return cast(nn.Parameter, getattr(last, "conv", last).weight)

    def compilable_parts(self, *, for_training: bool = False) -> Sequence[nn.Module]:
        net = self.net
        blocks = [block for block in net.decoder.up_blocks if len(block)]
        return [net.encoder, *(blocks if for_training else [net.decoder])]
