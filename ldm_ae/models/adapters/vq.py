"""Discrete autoencoders: a quantizer between the encoder and decoder of `diffusers.VQModel`.

Source: Esser et al., Taming Transformers for High-Resolution Image Synthesis (VQGAN), arXiv 2012.09841, section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.models.adapters.blocks import block_types
from ldm_ae.models.adapters.convolutional import ConvolutionalAutoencoder
from ldm_ae.models.channels import change_channels, record_pixels, recorded_pixels
from ldm_ae.models.checks import require_indices
from ldm_ae.models.interface import Autoencoder
from ldm_ae.models.loading.networks import class_name_of, read_network
from ldm_ae.models.loading.places import local_place
from ldm_ae.models.posteriors import DiscretePosterior, Posterior
from ldm_ae.models.spec import Codebook, LatentSpec
from ldm_ae.quantizers import EMAVQ, FSQ, VQ, ManagedCodebook, Quantizer, describe_quantizer

EUCLIDEAN: tuple[type[Quantizer], ...] = (VQ, EMAVQ)
"""The quantizers that choose the nearest code of a table, as `diffusers.VQModel` does."""


class VQAutoencoder(ConvolutionalAutoencoder):
    """A convolutional autoencoder with discrete latents: encoder, 1x1 convolution, quantizer, 1x1 convolution, decoder.

    Latents are the quantized ones, (B, codebook_dim, h, w), the input of `decode`. With `VQ` or `EMAVQ` the saved model
    is a `diffusers.VQModel`, which loads with a `VQ` quantizer, `legacy` if it was; with another quantizer it is a
    `QuantizedAutoencoder`, whose keys are the same where VQModel has them.

    Args:
        pretrained: A model folder of either class, the name of a shipped model (`vq-f8-small`), or a VQModel's name on
            the Hugging Face hub. The widths and blocks below are then read from it and ignored here. From the folder
            (or shipped name) of an AutoencoderKL come its encoder's mean and its decoder; the quantizer between them is
            new, and its codebook_dim must equal the latent channels.
        pixels: The images: `rgb`, `grey`, `rgba`, or a mapping with `channels`, `names`, `bits`, `low` and `high`
            (docs/PIXELS.md); null for those of `pretrained`, or RGB of 8 bits. With `pretrained` its first and last
            convolution are adapted.
        quantizer: Any of `ldm_ae.quantizers`. With `pretrained` the default is the folder's own; another one of its
            kind and size starts from the folder's codes, to train a VQModel with EMAVQ, restarts or another beta.
        block_out_channels: Number of channels of each resolution level; there are `len - 1` downsamplings by 2.
        layers_per_block: Number of ResNet blocks per level.
        latent_channels: Output channels of the encoder and input channels of the decoder, outside the 1x1 convolutions;
            the default is the quantizer's `codebook_dim`.
        attention_levels: Levels (0 is the full resolution) whose blocks have self-attention.
        mid_block_add_attention: Whether the middle block has self-attention.
        norm_num_groups: Number of groups of every GroupNorm; it must divide every entry of `block_out_channels`.
        act_fn: Activation, by diffusers' name.
    """

    short_names = ("vq",)

    class_names = ("QuantizedAutoencoder", "VQModel")
    neutral_config = frozenset({"force_upcast", "legacy_beta"})

    def __init__(
        self,
        *,
        pretrained: str | None = None,
        quantizer: Quantizer | None = None,
        pixels: dict[str, Any] | str | None = None,
        block_out_channels: tuple[int, ...] = (128, 256, 256, 512),
        layers_per_block: int = 2,
        latent_channels: int | None = None,
        attention_levels: tuple[int, ...] = (),
        mid_block_add_attention: bool = True,
        norm_num_groups: int = 32,
        act_fn: str = "silu",
    ):
        super().__init__()
        if pretrained is not None:
            self.net = _read(pretrained, quantizer)
            change_channels(self.net, pixels)
            return
        if quantizer is None:
            raise UserError("VQAutoencoder needs a quantizer, such as ldm_ae.quantizers.VQ, or a pretrained folder")
        blocks = block_types(block_out_channels, attention_levels=attention_levels, norm_num_groups=norm_num_groups)
        images = PixelSpec.from_json(pixels or "rgb")
        arguments = {
            "in_channels": images.channels,
            "out_channels": images.channels,
            "down_block_types": blocks.down,
            "up_block_types": blocks.up,
            "block_out_channels": tuple(block_out_channels),
            "layers_per_block": layers_per_block,
            "act_fn": act_fn,
            "latent_channels": quantizer.codebook_dim if latent_channels is None else latent_channels,
            "norm_num_groups": norm_num_groups,
            "sample_size": 256,
            "mid_block_add_attention": mid_block_add_attention,
            "scaling_factor": 1.0,  # no scale is measured yet
        }
        self.net = _build(arguments, quantizer)
        record_pixels(self.net, images)

    @classmethod
    def network_class(cls, class_name: str) -> Any:
        from ldm_ae.models.adapters._quantized_networks import QuantizedAutoencoder, VQModel

        return VQModel if class_name == "VQModel" else QuantizedAutoencoder

    @classmethod
    def around(cls, net: Any) -> Autoencoder:
        """Return an autoencoder with the parameters of `net`; a VQModel of diffusers keeps its own quantizer.

        Its configuration is then separate: a scale that is recorded here is not in `net`.
        """
        if not isinstance(net.quantize, Quantizer):
            net = _with_our_quantizer(net)
        return super().around(net)

    @classmethod
    def example(cls, class_name: str) -> VQAutoencoder:
        quantizer: Quantizer = VQ(16, 4) if class_name == "VQModel" else FSQ((4, 4, 3))
        return cls(
            quantizer=quantizer, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2,
            mid_block_add_attention=False,
        )  # fmt: skip

    @property
    def quantizer(self) -> Quantizer:
        """The quantizer between encoder and decoder."""
        return cast(Quantizer, self.net.quantize)

    @property
    def compvis_class(self) -> str | None:  # type: ignore[override]
        return "VQModel" if type(self.net).__name__ == "VQModel" else None

    def latents(self) -> LatentSpec:
        quantizer = self.quantizer
        return self.configured_latents(
            channels=quantizer.codebook_dim, codebook_size=quantizer.codebook_size,
            codebook_levels=quantizer.codebook_levels,
        )  # fmt: skip

    @property
    def codebook(self) -> Codebook:
        quantizer = self.quantizer
        return Codebook(
            method=type(quantizer).__name__, size=quantizer.codebook_size, levels=quantizer.codebook_levels,
            latents=self.indices_to_latents,
        )  # fmt: skip

    def encode(self, pixel_values: Tensor, *, noise: Tensor | None = None) -> DiscretePosterior:
        """Encode as the interface states; `noise` is for quantizers that draw in training, see `Quantizer.quantize`."""
        latents = self.net.quant_conv(self.encoder_output(pixel_values))
        return DiscretePosterior(self.quantizer(latents, noise=noise), self.quantizer.codebook_size)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode quantized latents (B, codebook_dim, h, w) without quantizing them again."""
        latents = self.decoder_input(latents)
        # MoVQ's decoder also normalizes by the quantized latents.
        spatial = latents if self.net.config.get("norm_type") == "spatial" else None
        return cast(Tensor, self.net.decoder(self.net.post_quant_conv(latents), spatial).float())

    def indices_to_latents(self, indices: Tensor) -> Tensor:
        """Return `codebook.latents` of the indices."""
        quantizer = self.quantizer
        indices = require_indices(indices, quantizer.codebook_size, quantizer.codebook_levels, device=self.device)
        return quantizer.codes(indices)

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Decode `indices_to_latents`: reconstructions (B, 3, H, W) float32, not clamped."""
        return self.decode(self.indices_to_latents(indices))

    def draw(self, pixel_values: Tensor, noise: Tensor | None = None) -> tuple[DiscretePosterior, Tensor]:
        posterior = self.encode(pixel_values, noise=noise)
        return posterior, posterior.mode()

    def learn(self, posteriors: Sequence[Posterior]) -> dict[str, Tensor]:
        """Update codes that learn without gradients, unless everything before the decoder is frozen."""
        batches = [cast(DiscretePosterior, posterior).quantized for posterior in posteriors]
        sources = (self.net.encoder, self.net.quant_conv, self.quantizer)
        if any(parameter.requires_grad for source in sources for parameter in source.parameters()):
            return self.quantizer.learn(batches)
        return self.quantizer.usage(batches)

    def needed_terms(self) -> frozenset[str]:
        """The quantizer's needed terms; none if its codes are frozen."""
        learns = any(parameter.requires_grad for parameter in self.quantizer.parameters())
        return self.quantizer.needed_terms if learns else frozenset()

    def learned_parameters(self) -> list[Tensor]:
        return list(self.quantizer.parameters())


def _build(arguments: dict[str, Any], quantizer: Quantizer) -> nn.Module:
    """Return a network with these VQModel arguments and the quantizer."""
    from ldm_ae.models.adapters._quantized_networks import QuantizedAutoencoder, VQModel

    net: Any
    if type(quantizer) in EUCLIDEAN:
        net = VQModel(**arguments, num_vq_embeddings=quantizer.codebook_size, vq_embed_dim=quantizer.codebook_dim)
        _record_beta(net, quantizer)
    else:
        net = QuantizedAutoencoder(**arguments, quantizer=describe_quantizer(quantizer))
    net.quantize = quantizer
    return net


def _read(pretrained: str, quantizer: Quantizer | None) -> nn.Module:
    """Return the network of a folder or hub name with its quantizer, or with the given one, which gets its codes."""
    from ldm_ae.models.adapters._quantized_networks import QuantizedAutoencoder, VQModel

    place = local_place(pretrained)
    kind = class_name_of(place)
    if kind == "AutoencoderKL":
        return _from_kl(pretrained, place, quantizer)
    if kind == "QuantizedAutoencoder":
        net: Any = read_network(QuantizedAutoencoder, place)
        kinds: tuple[type[Quantizer], ...] = (type(net.quantize),)
    else:
        net = read_network(VQModel, place)
        codes = net.quantize.embedding.weight.detach()
        net.quantize = VQ(*codes.shape, legacy=net.config.get("legacy_beta") is True)
        net.quantize.load_state_dict({"embedding.weight": codes})
        kinds = EUCLIDEAN
    if quantizer is not None:
        _continue_with(pretrained, net, quantizer, kinds)
    return net


def _with_our_quantizer(net: Any) -> nn.Module:
    """Return a VQModel of ours with the parts of diffusers' `net`, whose codes its quantizer shares."""
    from ldm_ae.models.adapters._quantized_networks import VQModel

    ours: Any = VQModel.__new__(VQModel)
    vars(ours).update(vars(net))
    ours._modules = dict(net._modules)
    codes = net.quantize.embedding.weight
    quantizer = VQ(*codes.shape, legacy=net.config.get("legacy_beta") is True).to(codes)
    quantizer.embedding.weight = codes
    ours.quantize = quantizer.train(net.training)
    return cast(nn.Module, ours)


def _from_kl(pretrained: str, place: Path, quantizer: Quantizer | None) -> nn.Module:
    """Return an AutoencoderKL with `quantizer` in place of its posterior.

    At first the quantizer's input is the posterior's mean: the encoder's last convolution absorbs the 1x1 one after it.
    """
    from diffusers import AutoencoderKL

    kl: Any = read_network(AutoencoderKL, place)
    channels = kl.config.latent_channels
    if quantizer is None:
        raise UserError(f"{pretrained} is an AutoencoderKL, which has no codes; set a quantizer")
    if quantizer.codebook_dim != channels:
        raise UserError(
            f"{pretrained} has {channels} latent channels, but the quantizer has codebook_dim {quantizer.codebook_dim}"
        )
    names = (
        "in_channels out_channels down_block_types up_block_types block_out_channels layers_per_block act_fn "
        "latent_channels norm_num_groups sample_size mid_block_add_attention"
    )
    net: Any = _build({name: kl.config[name] for name in names.split()} | {"scaling_factor": 1.0}, quantizer)
    record_pixels(net, recorded_pixels(kl))
    weights = kl.state_dict()
    weight, bias = weights.pop("encoder.conv_out.weight"), weights.pop("encoder.conv_out.bias")
    identity = {"weight": torch.eye(channels)[:, :, None, None], "bias": torch.zeros(channels)}
    mixing = torch.eye(2 * channels) if kl.quant_conv is None else weights["quant_conv.weight"][:, :, 0, 0]
    added = torch.zeros(2 * channels) if kl.quant_conv is None else weights["quant_conv.bias"]
    weights["encoder.conv_out.weight"] = torch.einsum("oi,ichw->ochw", mixing[:channels], weight)
    weights["encoder.conv_out.bias"] = mixing[:channels] @ bias + added[:channels]
    for name, value in identity.items():
        weights[f"quant_conv.{name}"] = value
        weights.setdefault(f"post_quant_conv.{name}", value)
    net.load_state_dict(weights | {f"quantize.{name}": value for name, value in net.quantize.state_dict().items()})
    return cast(nn.Module, net)


def _continue_with(pretrained: str, net: Any, quantizer: Quantizer, kinds: tuple[type[Quantizer], ...]) -> None:
    """Replace the network's quantizer by `quantizer`, which takes over its codes."""
    own: Quantizer = net.quantize
    if type(quantizer) not in kinds:
        names = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(
            f"quantizer: expected a {names} for the codes of {pretrained}, got a {type(quantizer).__name__}"
        )
    if (own.codebook_size, own.codebook_dim) != (quantizer.codebook_size, quantizer.codebook_dim):
        raise UserError(
            f"{pretrained} has {own.codebook_size} codes of {own.codebook_dim} dimensions, and the quantizer has "
            f"{quantizer.codebook_size} of {quantizer.codebook_dim}"
        )
    if isinstance(quantizer, ManagedCodebook):
        quantizer.start_from(cast(ManagedCodebook, own).weight)
    else:
        try:
            quantizer.load_state_dict(own.state_dict())
        except RuntimeError as error:
            raise UserError(
                f"{pretrained} has a {type(own).__name__} with other arguments; give the same, or remove quantizer"
            ) from error
    net.quantize = quantizer
    if type(net).__name__ == "QuantizedAutoencoder":
        net.register_to_config(quantizer=describe_quantizer(quantizer))
    else:
        _record_beta(net, quantizer)


def _record_beta(net: Any, quantizer: Quantizer) -> None:
    """Record in a VQModel's configuration whether beta weights the codebook term (legacy) and not the commitment.

    diffusers ignores the key, so a VQ that weights the commitment needs no record unless the key is already set.
    """
    legacy = isinstance(quantizer, VQ) and quantizer.legacy
    if legacy or net.config.get("legacy_beta") is not None:
        net.register_to_config(legacy_beta=legacy)
