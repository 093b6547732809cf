"""Autoencoders with one vector of latents for an image, which most literature on variational autoencoders is about.

Source: Kingma and Welling, Auto-Encoding Variational Bayes, arXiv 1312.6114; with convolutions as in Higgins et al.,
beta-VAE (ICLR 2017). The vector is a latent map of one place, (B, D, 1, 1), so that stores, scores and exports are
those of all other models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.models.adapters._gaussian import GaussianAutoencoder
from ldm_ae.models.adapters.blocks import block_types
from ldm_ae.models.channels import record_pixels
from ldm_ae.models.loading.networks import class_name_of, read_network
from ldm_ae.models.loading.places import local_place
from ldm_ae.models.spec import LatentSpec

_CONVOLUTIONAL, _LINEAR = "VectorVAE", "MLPVAE"


class VectorAutoencoder(GaussianAutoencoder):
    """An autoencoder of square images of one size with latents (B, D, 1, 1): `VectorVAE` or `MLPVAE` as `net`.

    Args:
        pretrained: A model folder, a run or a checkpoint of one (`runs/mine@best`), to start from. All below is then
            read from it and ignored here.
        pixels: The images: `rgb`, `grey`, `rgba`, or a mapping with `channels`, `names`, `bits`, `low` and `high`
            (docs/PIXELS.md).
        image_size: Side of the images in pixels.
        latent_channels: Number of latents D.
        architecture: `convolutional`, or `mlp`: linear layers on all pixels.
        block_out_channels: Of the convolutional network: number of channels of each resolution level; there are
            `len - 1` downsamplings by 2.
        layers_per_block: Of the convolutional network: number of ResNet blocks per level.
        norm_num_groups: Of the convolutional network: number of groups of every GroupNorm; it must divide every entry
            of `block_out_channels`.
        hidden: Of the mlp: widths of the encoder's hidden layers; the decoder has them in reverse.
        act_fn: Activation, by diffusers' name.
        bounded: Whether the decoder gives logits l and reconstructions are tanh(l/2), between -1 and 1, which the
            likelihood `bernoulli` needs; false leaves reconstructions without limits.
        initial_log_variance: Initial log-variance of the posterior, set as the bias of its layer; null keeps torch's
            initial value near 0, where the posterior is about as wide as the prior. -30, its smallest value, with the
            regularizer `mode` makes an autoencoder without noise.
    """

    short_names = ("vector",)
    class_names = (_CONVOLUTIONAL, _LINEAR)
    compvis_class = None

    def __init__(
        self,
        *,
        pretrained: str | None = None,
        pixels: dict[str, Any] | str = "rgb",
        image_size: int = 32,
        latent_channels: int = 20,
        architecture: Literal["convolutional", "mlp"] = "convolutional",
        block_out_channels: tuple[int, ...] = (32, 64, 64, 64),
        layers_per_block: int = 1,
        norm_num_groups: int = 8,
        hidden: tuple[int, ...] = (512, 256),
        act_fn: str = "silu",
        bounded: bool = True,
        initial_log_variance: float | None = None,
    ):
        super().__init__()
        if pretrained is not None:
            place = local_place(pretrained)
            self.net = read_network(self.network_class(class_name_of(place)), place)
            return
        if latent_channels < 1 or image_size < 1 or min(hidden, default=1) < 1:
            raise UserError("VectorAutoencoder: image_size, latent_channels and hidden widths must be at least 1")
        images = PixelSpec.from_json(pixels)
        both: dict[str, Any] = {
            "in_channels": images.channels, "image_size": image_size, "latent_channels": latent_channels,
            "act_fn": act_fn, "bounded": bounded,
        }  # fmt: skip
        if architecture == "mlp":
            self.net = self.network_class(_LINEAR)(**both, hidden=tuple(hidden))
        else:
            blocks = block_types(block_out_channels, attention_levels=(), norm_num_groups=norm_num_groups)
            if image_size % (factor := 2 ** (len(block_out_channels) - 1)):
                raise UserError(
                    f"VectorAutoencoder: expected an image_size that is divisible by {factor}, for "
                    f"{len(block_out_channels)} levels, got {image_size}; change it or block_out_channels"
                )
            self.net = self.network_class(_CONVOLUTIONAL)(
                **both, down_block_types=blocks.down, up_block_types=blocks.up, norm_num_groups=norm_num_groups,
                block_out_channels=tuple(block_out_channels), layers_per_block=layers_per_block,
            )  # fmt: skip
        record_pixels(self.net, images)
        self.set_initial_log_variance(initial_log_variance)

    @classmethod
    def network_class(cls, class_name: str) -> Any:
        from ldm_ae.models.adapters import _vector_networks

        if class_name not in cls.class_names:
            raise UserError(f"expected a {' or a '.join(cls.class_names)}, got a {class_name}")
        return getattr(_vector_networks, class_name)

    @classmethod
    def example(cls, class_name: str) -> VectorAutoencoder:
        small: dict[str, Any] = {"image_size": 16, "latent_channels": 3}
        if class_name == _LINEAR:
            return cls(architecture="mlp", hidden=(8,), **small)
        return cls(block_out_channels=(4, 8), norm_num_groups=2, **small)

    @property
    def _is_linear(self) -> bool:
        return type(self.net).__name__ == _LINEAR

    @property
    def downsample_factor(self) -> int:
        return int(self.net.config.image_size)

    def latents(self) -> LatentSpec:
        return self.configured_latents(image_size=self.net.config.image_size)

    def decode(self, latents: Tensor) -> Tensor:
        latents = self.decoder_input(latents)
        if latents.shape[-2:] != (1, 1):
            raise UserError(f"latents must be (B, {latents.shape[1]}, 1, 1), got {tuple(latents.shape)}")
        return cast(Tensor, self.net.to_images(self.net.decoder(latents)))

    def set_initial_log_variance(self, value: float | None) -> None:
        if value is not None:
            nn.init.constant_(self._moments_layer.bias[self.net.config.latent_channels :], value)

    @property
    def _moments_layer(self) -> Any:
        return self.net.encoder[-2] if self._is_linear else self.net.encoder.linear

    @property
    def last_layer(self) -> nn.Parameter:
        layer = self.net.decoder[-2] if self._is_linear else self.net.decoder.body.conv_out
        return cast(nn.Parameter, layer.weight)

    @property
    def encoder_last_layer(self) -> nn.Parameter:
        return cast(nn.Parameter, self._moments_layer.weight)

    def compilable_parts(self, *, for_training: bool = False) -> Sequence[nn.Module]:
        if self._is_linear:
            return ()
        net = self.net
        body = net.decoder.body
        return [net.encoder, *([body.mid_block, *body.up_blocks] if for_training else [net.decoder])]

    def exact_parts(self) -> Sequence[nn.Module]:
        return ()

    @property
    def sample_size(self) -> int:
        return int(self.net.config.image_size)

    def set_sample_size(self, size: int) -> None:
        """Accept the only size of the model's images; UserError for another."""
        self.latent_spec.latent_size(size, size)
