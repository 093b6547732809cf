"""`diffusers.AutoencoderKLHunyuanImage`, the autoencoder of HunyuanImage 2.1, behind the project's interface."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import nn

from ldm_ae.core.errors import UserError
from ldm_ae.models.adapters._gaussian import GaussianAutoencoder
from ldm_ae.models.adapters._opening import open_pretrained
from ldm_ae.models.spec import LatentSpec

GROUPS = 32
"""Groups of every GroupNorm, which the class does not let choose."""


class HunyuanImageAutoencoder(GaussianAutoencoder):
    """A KL autoencoder with shortcuts between space and channels (f32): `diffusers.AutoencoderKLHunyuanImage` as `net`.

    Args:
        pretrained: A model folder, a run or a checkpoint of one (`runs/mine@best`), or a name on the Hugging Face hub
            (`hunyuanvideo-community/HunyuanImage-2.1-Diffusers`), to start from. All below is then read from it and
            ignored here.
        block_out_channels: Number of channels of each resolution level, multiples of 32; there are `len - 1`
            downsamplings by 2.
        layers_per_block: Number of ResNet blocks per level.
        latent_channels: Number of latent channels C; 2 C must divide the last width.
        initial_log_variance: Initial log-variance of the posterior, set as the bias of its layer; null keeps diffusers'
            initial value near 0.
    """

    short_names = ("hunyuan-image",)
    class_names = ("AutoencoderKLHunyuanImage",)

    def __init__(
        self,
        *,
        pretrained: str | None = None,
        block_out_channels: tuple[int, ...] = (128, 256, 512, 512, 1024, 1024),
        layers_per_block: int = 2,
        latent_channels: int = 64,
        initial_log_variance: float | None = None,
    ):
        from diffusers import AutoencoderKLHunyuanImage  # takes seconds

        super().__init__()
        if pretrained is not None:
            open_pretrained(self, AutoencoderKLHunyuanImage, pretrained)
            return
        widths = tuple(block_out_channels)
        if bad := [width for width in widths if width % GROUPS]:
            raise UserError(f"block_out_channels: {bad[0]} is not divisible by {GROUPS}, the groups of its GroupNorm")
        if widths[-1] % (2 * latent_channels):
            raise UserError(f"block_out_channels: {widths[-1]} is not divisible by 2 * latent_channels")
        if pairs := [pair for pair in itertools.pairwise(widths) if 4 * min(pair) % max(pair)]:
            raise UserError(
                f"block_out_channels: of neighbours the wider must divide 4 times the other, got {pairs[0]}"
            )
        self.net = AutoencoderKLHunyuanImage(
            in_channels=3,
            out_channels=3,
            latent_channels=latent_channels,
            block_out_channels=widths,
            layers_per_block=layers_per_block,
            spatial_compression_ratio=2 ** (len(widths) - 1),
            sample_size=256,
            scaling_factor=1.0,  # no scale is measured yet
        )
        self.set_initial_log_variance(initial_log_variance)

    @classmethod
    def example(cls, class_name: str) -> HunyuanImageAutoencoder:
        del class_name
        return cls(block_out_channels=(GROUPS, GROUPS), layers_per_block=1, latent_channels=4)

    def compilable_parts(self, *, for_training: bool = False) -> Sequence[nn.Module]:
        encoder, decoder = self.net.encoder, self.net.decoder
        if not for_training:
            return [encoder, decoder]
        # The backward pass of the whole encoder fails in torch 2.14 (AOTAutograd) unless its layout is channels-last.
        return [*encoder.down_blocks, encoder.mid_block, decoder.mid_block, *decoder.up_blocks]

    @property
    def downsample_factor(self) -> int:
        config = self.net.config
        return int(2 ** min(len(config.block_out_channels) - 1, math.ceil(math.log2(config.spatial_compression_ratio))))

    def latents(self) -> LatentSpec:
        if self.net.config.scaling_factor is None:  # diffusers' default
            return self.configured_latents(scaling_factor=1.0)
        return super().latents()
