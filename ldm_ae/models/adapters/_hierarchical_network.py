"""The network of a hierarchical autoencoder with discrete latents, built from diffusers' encoder and decoder.

The import of diffusers takes seconds, so that `hierarchical_vq.py` imports this module only when it builds or reads a
network.
"""

from __future__ import annotations

from typing import Any

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import nn

from ldm_ae.core.errors import UserError
from ldm_ae.quantizers import build_quantizer

MOST_MAPS = 4


class HierarchicalQuantizedAutoencoder(ModelMixin, ConfigMixin):
    """The saved parts of a hierarchical autoencoder; in its lists the coarsest map is the first.

    `encoder` gives the features of the finest map, and `coarser_encoders[i]` those of map i from those of map i + 1.
    `quantizers[i]` chooses the codes of map i from `quant_convs[i]` of its features and, after the first, of the output
    of `conditioners[i - 1]`, a decoder of the codes of all coarser maps. `upsamplers[i]` brings these to the sides of
    map i + 1, where the codes of that map join them. `decoder` takes `post_quant_conv` of all codes.

    Arguments that `diffusers.VQModel` also has mean the same as there.

    Args:
        quantizer: `class_name` and `init_args` of each map's own quantizer, as returned by `describe_quantizer`; only
            the project's quantizers are looked up by this name.
        maps: Number of maps, from 2 to 4.
        latents_mean: Measured per-channel mean of the latents, or None.
        latents_std: Measured per-channel standard deviation of the latents, or None.

    Raises:
        UserError: Another number of maps, or a quantizer with several codes at a place.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        quantizer: dict[str, Any],
        maps: int = 2,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",),
        up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",),
        block_out_channels: tuple[int, ...] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 64,
        sample_size: int = 32,
        norm_num_groups: int = 32,
        scaling_factor: float = 1.0,
        mid_block_add_attention: bool = True,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
    ):
        super().__init__()
        if type(maps) is not int or not 2 <= maps <= MOST_MAPS:
            raise UserError(f"maps: expected 2 to {MOST_MAPS}, got {maps}. For one map use VQAutoencoder")
        every: dict[str, Any] = {
            "layers_per_block": layers_per_block,
            "act_fn": act_fn,
            "norm_num_groups": norm_num_groups,
            "mid_block_add_attention": mid_block_add_attention,
        }
        ends = every | {"block_out_channels": block_out_channels}
        # Two levels of one width: a factor of 2.
        between = every | {"block_out_channels": (block_out_channels[-1],) * 2}
        down, up = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
        steps = range(1, maps)
        quantizers = [build_quantizer(quantizer) for _ in range(maps)]
        if (levels := quantizers[0].codebook_levels) is not None:
            raise UserError(
                f"quantizer: a map has one code at each place, and {type(quantizers[0]).__name__} chooses {levels}; "
                "choose another quantizer"
            )
        self.quantizers = nn.ModuleList(quantizers)
        code = quantizers[0].codebook_dim
        self.encoder = Encoder(in_channels, latent_channels, down_block_types, double_z=False, **ends)
        self.coarser_encoders = nn.ModuleList(
            [Encoder(latent_channels, latent_channels, down, double_z=False, **between) for _ in steps]
        )
        self.conditioners = nn.ModuleList([Decoder(i * code, latent_channels, up, **between) for i in steps])
        self.quant_convs = nn.ModuleList(
            [nn.Conv2d(latent_channels * (1 if i == 0 else 2), code, 1) for i in range(maps)]
        )
        self.upsamplers = nn.ModuleList([nn.ConvTranspose2d(i * code, i * code, 4, stride=2, padding=1) for i in steps])
        self.post_quant_conv = nn.Conv2d(maps * code, latent_channels, 1)
        self.decoder = Decoder(latent_channels, out_channels, up_block_types, **ends)
