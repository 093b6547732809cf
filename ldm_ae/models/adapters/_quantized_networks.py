"""The networks of discrete autoencoders: `diffusers.VQModel`, and one with a quantizer that VQModel does not have.

The latter is built from diffusers' parts, under the names and configuration keys of VQModel. The import of diffusers
takes seconds, so that `vq.py` imports this module only when it builds or reads a network.
"""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import nn

from ldm_ae.quantizers import build_quantizer


class VQModel(diffusers.VQModel):
    """`diffusers.VQModel` with one of our quantizers as `quantize`; diffusers opens a saved model as its own class."""

    _supports_gradient_checkpointing = True
    # Only a resumed training needs a quantizer's record of how often its codes are used.
    _keys_to_ignore_on_load_unexpected = (r"^quantize\.(?!embedding)",)


class QuantizedAutoencoder(ModelMixin, ConfigMixin):
    """The saved parts of a discrete autoencoder: `encoder`, `quant_conv`, `quantize`, `post_quant_conv`, `decoder`.

    Arguments that `diffusers.VQModel` also has mean the same as there.

    Args:
        quantizer: `class_name` and `init_args`, as returned by `describe_quantizer`; only the project's quantizers are
            looked up by this name.
        latents_mean: Measured per-channel mean of the latents, or None.
        latents_std: Measured per-channel standard deviation of the latents, or None.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        quantizer: dict[str, Any],
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",),
        up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",),
        block_out_channels: tuple[int, ...] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 3,
        sample_size: int = 32,
        norm_num_groups: int = 32,
        scaling_factor: float = 1.0,
        mid_block_add_attention: bool = True,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
    ):
        super().__init__()
        both: dict[str, Any] = {
            "block_out_channels": block_out_channels,
            "layers_per_block": layers_per_block,
            "act_fn": act_fn,
            "norm_num_groups": norm_num_groups,
            "mid_block_add_attention": mid_block_add_attention,
        }
        self.encoder = Encoder(in_channels, latent_channels, down_block_types, double_z=False, **both)
        self.quantize = build_quantizer(quantizer)
        codebook_dim = self.quantize.codebook_dim
        self.quant_conv = nn.Conv2d(latent_channels, codebook_dim, 1)
        self.post_quant_conv = nn.Conv2d(codebook_dim, latent_channels, 1)
        self.decoder = Decoder(latent_channels, out_channels, up_block_types, **both)
