"""The networks of autoencoders whose latents are one vector for an image.

Both take images (B, C, H, W) of one size and give moments (B, 2D, 1, 1), and take latents (B, D, 1, 1). The import of
diffusers takes seconds, so that `vector.py` imports this module only when it builds or reads a network.
"""

from __future__ import annotations

import itertools
from typing import Any, cast

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.activations import get_activation
from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import Tensor, nn

LOGIT_LIMIT = 10.0
"""Size that logits approach: probabilities are in (4.5e-5, 1 - 4.5e-5), which float32 resolves."""


class _VectorNetwork(ModelMixin, ConfigMixin):
    """What both networks have: parts `encoder` and `decoder`, and what follows the decoder."""

    encoder: nn.Module
    decoder: nn.Module

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Encode images (B, C, H, W) in [-1, 1] to the posterior's mean and log-variance (B, 2D, 1, 1)."""
        return cast(Tensor, self.encoder(pixel_values))

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (B, D, 1, 1) to images (B, C, H, W) float32."""
        return self.to_images(self.decoder(latents))

    def to_images(self, outputs: Tensor) -> Tensor:
        """Return the decoder's outputs as images, float32.

        If `bounded`, outputs are logits l of white, limited to (-10, 10), and images are 2 sigmoid(l) - 1 = tanh(l/2).
        """
        outputs = outputs.float()
        if not cast(Any, self).config.bounded:
            return outputs
        return torch.tanh(LOGIT_LIMIT / 2 * torch.tanh(outputs / LOGIT_LIMIT))


class VectorVAE(_VectorNetwork):
    """Encoder and decoder of diffusers' AutoencoderKL, each with a linear layer between its last map and the vector.

    Args:
        in_channels: Number of channels C of the images.
        image_size: Side of the images, divisible by 2 for each level of `block_out_channels` but the first.
        latent_channels: Number of latents D.
        down_block_types: As of AutoencoderKL, like the next five.
        up_block_types: Likewise.
        block_out_channels: Likewise.
        layers_per_block: Likewise.
        act_fn: Likewise.
        norm_num_groups: Likewise.
        bounded: Whether the decoder's outputs are logits.
        scaling_factor: Factor of latents for a diffusion model.
        latents_mean: Measured mean of each latent, or None.
        latents_std: Measured standard deviation of each latent, or None.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        image_size: int = 32,
        latent_channels: int = 20,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",),
        up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",),
        block_out_channels: tuple[int, ...] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        norm_num_groups: int = 32,
        bounded: bool = True,
        scaling_factor: float = 1.0,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
    ):
        super().__init__()
        both: dict[str, Any] = {
            "block_out_channels": block_out_channels,
            "layers_per_block": layers_per_block,
            "act_fn": act_fn,
            "norm_num_groups": norm_num_groups,
            "mid_block_add_attention": False,
        }
        width, side = block_out_channels[-1], image_size // 2 ** (len(block_out_channels) - 1)
        self.encoder = _ToVector(
            Encoder(in_channels, width, down_block_types, double_z=False, **both), width, side, latent_channels
        )
        self.decoder = _FromVector(Decoder(width, in_channels, up_block_types, **both), width, side, latent_channels)


class _ToVector(nn.Module):
    def __init__(self, body: nn.Module, width: int, side: int, latent_channels: int):
        super().__init__()
        self.body = body
        self.linear = nn.Linear(width * side * side, 2 * latent_channels)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return cast(Tensor, self.linear(self.body(pixel_values).flatten(1)))[:, :, None, None]


class _FromVector(nn.Module):
    def __init__(self, body: nn.Module, width: int, side: int, latent_channels: int):
        super().__init__()
        self.shape = (width, side, side)
        self.linear = nn.Linear(latent_channels, width * side * side)
        self.body = body

    def forward(self, latents: Tensor) -> Tensor:
        return cast(Tensor, self.body(self.linear(latents.flatten(1)).unflatten(1, self.shape)))


class MLPVAE(_VectorNetwork):
    """Linear layers on all pixels of an image: 784-512-256-20 and back for images of 28x28 and 20 latents.

    Args:
        in_channels: Number of channels C of the images.
        image_size: Side of the images.
        latent_channels: Number of latents D.
        hidden: Widths of the encoder's hidden layers; the decoder has them in reverse.
        act_fn: Activation, by diffusers' name.
        bounded: Whether the decoder's outputs are logits.
        scaling_factor: Factor of latents for a diffusion model.
        latents_mean: Measured mean of each latent, or None.
        latents_std: Measured standard deviation of each latent, or None.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 1,
        image_size: int = 28,
        latent_channels: int = 20,
        hidden: tuple[int, ...] = (512, 256),
        act_fn: str = "relu",
        bounded: bool = True,
        scaling_factor: float = 1.0,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
    ):
        super().__init__()
        shape = (in_channels, image_size, image_size)
        pixels = in_channels * image_size * image_size
        self.encoder = nn.Sequential(
            nn.Flatten(), *_layers([pixels, *hidden, 2 * latent_channels], act_fn),
            nn.Unflatten(1, (2 * latent_channels, 1, 1)),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Flatten(), *_layers([latent_channels, *reversed(hidden), pixels], act_fn), nn.Unflatten(1, shape)
        )


def _layers(widths: list[int], act_fn: str) -> list[nn.Module]:
    """Return linear layers of these widths with activations between them."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), get_activation(act_fn)]
    return layers[:-1]
