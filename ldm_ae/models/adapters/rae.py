"""`diffusers.AutoencoderRAE`, a frozen representation encoder with a trained decoder, behind the project's interface.

Source: Zheng et al., Diffusion Transformers with Representation Autoencoders, arXiv 2510.11690.

Latents are what the network's `encode` returns: tokens as a map (B, C, h, w), which the network itself normalizes by
its `latents_mean` and `latents_std`. Diffusion models see these latents, so that `scale` changes nothing. The network
takes and gives pixels in [0, 1], here they are in [-1, 1]. Images are square and of one size.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from importlib.metadata import version
from typing import Literal, cast

import torch
from torch import Tensor, nn

from ldm_ae.core.errors import UserError, reason
from ldm_ae.images.pixels import of_channels
from ldm_ae.models.adapters._opening import open_pretrained
from ldm_ae.models.interface import Autoencoder
from ldm_ae.models.loading.configs import read_config
from ldm_ae.models.loading.places import local_place
from ldm_ae.models.posteriors import DeterministicPosterior
from ldm_ae.models.spec import AutoencoderSpec, LatentSpec

HEAD_DIM = 64
"""Channels of an attention head of the encoders."""


class RAEAutoencoder(Autoencoder):
    """A representation autoencoder: `diffusers.AutoencoderRAE` as `net`, without a posterior.

    The encoder is never trained. `noise_tau` of the configuration has no effect: the regularizer `AdditiveNoise` adds
    the noise of training, with a seed per sample.

    Args:
        pretrained: A model folder, a run or a checkpoint of one (`runs/mine@best`), or a name on the Hugging Face hub
            (`nyu-visionx/RAE-dinov2-wReg-base-ViTXL-n08`), to start from. All below is then read from it and ignored
            here.
        encoder: A folder of transformers, or a name on the hub, with the weights of the encoder, such as
            `facebook/dinov2-with-registers-base`; null starts from random weights, which never change.
        encoder_type: `dinov2` (with registers), `siglip2` or `mae`.
        encoder_hidden_size: Channels of the encoder, a multiple of 64, and of the latents.
        encoder_patch_size: Side of the encoder's patches in pixels.
        encoder_num_hidden_layers: Number of layers of the encoder.
        encoder_input_size: Side in pixels to which the network resizes images for its encoder.
        decoder_hidden_size: Channels of the decoder.
        decoder_num_hidden_layers: Number of layers of the decoder.
        decoder_num_attention_heads: Number of attention heads of the decoder.
        decoder_intermediate_size: Channels of the decoder's feed-forward layers.
        patch_size: Side of the decoder's patches in pixels, which is the downsample factor: the images have
            `patch_size * encoder_input_size / encoder_patch_size` pixels a side.
    """

    short_names = ("rae",)
    class_names = ("AutoencoderRAE",)
    decoder_names = ("decoder.",)
    frozen_names = ("encoder.",)
    neutral_config = frozenset({"noise_tau", "use_encoder_loss"})

    def __init__(
        self,
        *,
        pretrained: str | None = None,
        encoder: str | None = None,
        encoder_type: Literal["dinov2", "siglip2", "mae"] = "dinov2",
        encoder_hidden_size: int = 768,
        encoder_patch_size: int = 14,
        encoder_num_hidden_layers: int = 12,
        encoder_input_size: int = 224,
        decoder_hidden_size: int = 512,
        decoder_num_hidden_layers: int = 8,
        decoder_num_attention_heads: int = 16,
        decoder_intermediate_size: int = 2048,
        patch_size: int = 16,
    ):
        if importlib.util.find_spec("transformers") is None:
            raise UserError("AutoencoderRAE needs the package transformers, which is missing; pip install transformers")
        from diffusers import AutoencoderRAE  # takes seconds

        super().__init__()
        if pretrained is not None:
            _require_encoder(read_config(local_place(pretrained)).get("encoder_type"))
            if (installed := version("transformers")).partition(".")[0] == "4":  # its initialization fails in diffusers
                raise UserError(
                    f"a saved AutoencoderRAE needs transformers 5 or newer, and {installed} is installed; upgrade it: "
                    "pip install --upgrade transformers"
                )
            open_pretrained(self, AutoencoderRAE, pretrained)
            self.train(self.training)
            return
        for name, size, divisor in (
            ("encoder_hidden_size", encoder_hidden_size, HEAD_DIM),
            ("encoder_input_size", encoder_input_size, encoder_patch_size),
            ("decoder_hidden_size", decoder_hidden_size, decoder_num_attention_heads),
        ):
            if size % divisor:
                raise UserError(f"{name}: expected a multiple of {divisor}, got {size}")
        _require_encoder(encoder_type)
        self.net = AutoencoderRAE(
            encoder_type=encoder_type,
            encoder_hidden_size=encoder_hidden_size,
            encoder_patch_size=encoder_patch_size,
            encoder_num_hidden_layers=encoder_num_hidden_layers,
            encoder_input_size=encoder_input_size,
            decoder_hidden_size=decoder_hidden_size,
            decoder_num_hidden_layers=decoder_num_hidden_layers,
            decoder_num_attention_heads=decoder_num_attention_heads,
            decoder_intermediate_size=decoder_intermediate_size,
            patch_size=patch_size,
        )
        if encoder is not None:
            _load_encoder(self.net.encoder, encoder)
        self.train(self.training)

    @classmethod
    def example(cls, class_name: str) -> RAEAutoencoder:
        del class_name
        return cls(
            encoder_hidden_size=HEAD_DIM, encoder_patch_size=4, encoder_num_hidden_layers=1, encoder_input_size=16,
            decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
            decoder_intermediate_size=16, patch_size=4,
        )  # fmt: skip

    def train(self, mode: bool = True) -> RAEAutoencoder:
        """Set the mode of all but the encoder, which is always in eval mode."""
        super().train(mode)
        self.net.encoder.eval()
        return self

    @property
    def spec(self) -> AutoencoderSpec:
        net = self.net
        pixels = of_channels(net.config.num_channels).require_supported(type(net).__name__)
        if not net.reshape_to_2d:
            raise UserError("AutoencoderRAE: reshape_to_2d is false, expected true: latents are maps (B, C, h, w)")
        latents = LatentSpec(
            channels=net.config.encoder_hidden_size,
            downsample_factor=net.decoder_patch_size,
            scaling_factor=1.0,
            image_size=net.decoder_image_size,
        )
        return AutoencoderSpec(pixels=pixels, latents=latents)

    @property
    def scale_keys(self) -> tuple[str, ...]:
        return ()

    def encode(self, pixel_values: Tensor) -> DeterministicPosterior:
        self.require_images(pixel_values)
        net = self.net
        noise, net.noise_tau = net.noise_tau, 0.0
        try:
            latents = net.encode(pixel_values.to(self.dtype).add(1).div(2)).latent
        finally:
            net.noise_tau = noise
        return DeterministicPosterior(latents.float())

    def decode(self, latents: Tensor) -> Tensor:
        self.require_latents(latents)
        grid = self.net.decoder_image_size // self.net.decoder_patch_size
        if latents.shape[-2:] != (grid, grid):
            raise UserError(
                f"latents must be (B, {latents.shape[1]}, {grid}, {grid}), those of images of the model's only size, "
                f"got {tuple(latents.shape)}"
            )
        return cast(Tensor, self.net.decode(latents.to(self.dtype)).sample.float().mul(2).sub(1))

    @property
    def last_layer(self) -> nn.Parameter:
        return cast(nn.Parameter, self.net.decoder.decoder_pred.weight)

    def compilable_parts(self, *, for_training: bool = False) -> Sequence[nn.Module]:
        del for_training
        return list(self.net.decoder.decoder_layers)

    @property
    def sample_size(self) -> int:
        return int(self.net.decoder_image_size)

    def set_sample_size(self, size: int) -> None:
        """Accept the only size of the model's images; UserError for another."""
        self.latent_spec.latent_size(size, size)


def _require_encoder(kind: object) -> None:
    """Raise UserError for an encoder that the installed diffusers cannot build with the installed transformers."""
    import diffusers
    import transformers

    config = transformers.SiglipVisionConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=0)
    if kind == "siglip2" and not hasattr(transformers.SiglipVisionModel(config), "vision_model"):
        raise UserError(
            f"encoder_type siglip2: diffusers {diffusers.__version__} cannot build it with transformers "
            f"{transformers.__version__}, whose SiglipVisionModel has no vision_model; pip install 'transformers<5'"
        )


def _load_encoder(encoder: nn.Module, source: str) -> None:
    """Load the weights of a transformers model of the encoder's class."""
    network = type(encoder)
    try:
        weights = network.from_pretrained(source, torch_dtype=torch.float32).state_dict()  # type: ignore[attr-defined]
        # The network has no weights for the last normalization.
        encoder.load_state_dict({key: weights[key] for key in encoder.state_dict()})
    except Exception as error:
        raise UserError(f"encoder: {source} cannot be loaded as {network.__name__}: {reason(error)}") from error
