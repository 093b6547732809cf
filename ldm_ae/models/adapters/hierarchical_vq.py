"""Hierarchical discrete autoencoders: maps of codes of several sizes, each conditioned on the coarser ones.

Source: Razavi et al., Generating Diverse High-Fidelity Images with VQ-VAE-2, arXiv 1906.00446, section 3.1, figure 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ldm_ae.core.code_maps import pack_maps, places_of_maps, split_maps
from ldm_ae.core.errors import UserError
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.models.adapters._opening import open_pretrained
from ldm_ae.models.adapters.blocks import block_types
from ldm_ae.models.adapters.convolutional import ConvolutionalAutoencoder
from ldm_ae.models.adapters.initialization import start_as_pyramid
from ldm_ae.models.channels import record_pixels
from ldm_ae.models.checks import require_indices
from ldm_ae.models.posteriors import DiscretePosterior, Posterior
from ldm_ae.models.spec import Codebook, LatentSpec
from ldm_ae.models.wrappers.exact_tiling import has_bands
from ldm_ae.quantizers import VQ, Quantized, Quantizer, describe_quantizer


class HierarchicalVQAutoencoder(ConvolutionalAutoencoder):
    """A convolutional autoencoder with two to four maps of codes, each of twice the sides of the one before (VQ-VAE-2).

    The coarsest map is quantized first; a decoder of its codes conditions the choice of the next map's codes, and so
    on. The image's decoder takes the codes of all maps.

    Latents and indices have the places of the coarsest map, so that `downsample_factor` is that map's. They hold all
    maps without repetition: of two maps, the first codebook_dim channels of the latents are the coarse code, and the
    others are the four fine codes at its place, (B, 5 codebook_dim, h, w); indices are (B, 5, h, w). Of three maps it
    is 21 codes. `latent_spec.index_maps(indices)` returns the maps of indices.

    Args:
        pretrained: A model folder of this class, or its name on the Hugging Face hub; the other arguments except
            `pixels` are then read from it and ignored here.
        quantizer: Any of `ldm_ae.quantizers` except `ResidualVQ`; each map has one of its own with these arguments.
        maps: Number of maps, from 2 to 4.
        pixels: The images, as in `VQAutoencoder`.
        block_out_channels: Number of channels of each resolution level from the image to the finest map; there are
            `len - 1` downsamplings by 2. The networks between maps have the last number of channels.
        layers_per_block: Number of ResNet blocks per level.
        latent_channels: Channels of the features of every map; the default is the last of `block_out_channels`.
        attention_levels: Levels (0 is the full resolution) whose blocks have self-attention.
        mid_block_add_attention: Whether the middle blocks have self-attention.
        norm_num_groups: Number of groups of every GroupNorm; it must divide every entry of `block_out_channels`.
        act_fn: Activation, by diffusers' name.
        initialization: `default` is that of diffusers; `thumbnail` starts as a linear autoencoder whose coarsest map
            holds a small thumbnail, and each finer map the details of a larger one
            (`ldm_ae.models.adapters.initialization`), for short trainings.
    """

    short_names = ("vq-vae-2", "hierarchical-vq")

    class_names = ("HierarchicalQuantizedAutoencoder",)

    def __init__(
        self,
        *,
        pretrained: str | None = None,
        quantizer: Quantizer | None = None,
        maps: int = 2,
        pixels: dict[str, Any] | str | None = None,
        block_out_channels: tuple[int, ...] = (128, 128, 128),
        layers_per_block: int = 2,
        latent_channels: int | None = None,
        attention_levels: tuple[int, ...] = (),
        mid_block_add_attention: bool = False,
        norm_num_groups: int = 32,
        act_fn: str = "silu",
        initialization: Literal["default", "thumbnail"] = "default",
    ):
        from ldm_ae.models.adapters._hierarchical_network import HierarchicalQuantizedAutoencoder

        super().__init__()
        if pretrained is not None:
            if quantizer is not None:
                raise UserError(
                    f"HierarchicalVQAutoencoder: {pretrained} has quantizers with codes; remove quantizer or pretrained"
                )
            open_pretrained(self, HierarchicalQuantizedAutoencoder, pretrained, pixels=pixels)
            return
        if quantizer is None:
            raise UserError(
                "HierarchicalVQAutoencoder needs a quantizer, such as ldm_ae.quantizers.EMAVQ, or a pretrained folder"
            )
        blocks = block_types(block_out_channels, attention_levels=attention_levels, norm_num_groups=norm_num_groups)
        images = PixelSpec.from_json(pixels or "rgb")
        self.net = HierarchicalQuantizedAutoencoder(
            quantizer=describe_quantizer(quantizer),
            maps=maps,
            in_channels=images.channels,
            out_channels=images.channels,
            down_block_types=blocks.down,
            up_block_types=blocks.up,
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            act_fn=act_fn,
            latent_channels=block_out_channels[-1] if latent_channels is None else latent_channels,
            norm_num_groups=norm_num_groups,
            sample_size=256,
            mid_block_add_attention=mid_block_add_attention,
            scaling_factor=1.0,  # no scale is measured yet
        )
        record_pixels(self.net, images)
        if initialization == "thumbnail":
            start_as_pyramid(self.net)

    @classmethod
    def network_class(cls, class_name: str) -> Any:
        del class_name
        from ldm_ae.models.adapters._hierarchical_network import HierarchicalQuantizedAutoencoder

        return HierarchicalQuantizedAutoencoder

    @classmethod
    def example(cls, class_name: str) -> HierarchicalVQAutoencoder:
        del class_name
        return cls(quantizer=VQ(16, 3), block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2)

    @property
    def maps(self) -> int:
        """The number of maps."""
        return int(self.net.config.maps)

    @property
    def quantizers(self) -> list[Quantizer]:
        """The quantizer of each map, the coarsest first."""
        return list(self.net.quantizers)

    @property
    def decoder_names(self) -> tuple[str, ...]:  # type: ignore[override]
        # Only the last upsampler is outside the encoder: the others condition the choice of finer codes.
        return ("decoder.", "post_quant_conv.", f"upsamplers.{self.maps - 2}.")

    @property
    def downsample_factor(self) -> int:
        """H / h of the coarsest map."""
        return super().downsample_factor * 2 ** (self.maps - 1)

    def latents(self) -> LatentSpec:
        quantizer, places = self.quantizers[0], places_of_maps(self.maps)
        return self.configured_latents(
            channels=quantizer.codebook_dim * places, codebook_size=quantizer.codebook_size, codebook_levels=places,
            codebook_maps=self.maps,
        )  # fmt: skip

    @property
    def codebook(self) -> Codebook:
        quantizer = self.quantizers[0]
        return Codebook(
            method=type(quantizer).__name__, size=quantizer.codebook_size, levels=places_of_maps(self.maps),
            latents=self.indices_to_latents,
        )  # fmt: skip

    def compilable_parts(self, *, for_training: bool = False) -> Sequence[nn.Module]:
        between = [*self.net.coarser_encoders, *self.net.conditioners]
        return [*super().compilable_parts(for_training=for_training), *between]

    def exact_parts(self) -> Sequence[nn.Module]:
        net = self.net
        parts = [net.encoder, *net.coarser_encoders, *net.conditioners, net.decoder]
        return parts if all(map(has_bands, parts)) else ()

    def encode(self, pixel_values: Tensor, *, noise: Tensor | None = None) -> DiscretePosterior:
        """Encode as the interface states; `noise`, of the latents' shape, is for quantizers that draw in training."""
        net = self.net
        features = [self.encoder_output(pixel_values)]
        for encoder in reversed(net.coarser_encoders):
            features.insert(0, encoder(features[0]))
        noises = [None] * self.maps if noise is None else split_maps(noise, self.maps)
        chosen: list[Quantized] = []
        codes: Tensor | None = None
        for i, inputs in enumerate(features):
            if i > 0:
                codes = self._codes(i - 1, chosen[-1].quantized, codes)
                inputs = torch.cat([inputs, net.conditioners[i - 1](codes)], dim=1)
            chosen.append(self.quantizers[i](net.quant_convs[i](inputs), noise=noises[i]))
        quantized = Quantized(
            pack_maps([choice.quantized for choice in chosen]),
            pack_maps([choice.indices[:, None] for choice in chosen]),
            _over_maps([choice.losses for choice in chosen], torch.sum),
            _over_maps([choice.statistics for choice in chosen], torch.mean),
            pack_maps([choice.latents for choice in chosen]),
        )
        return DiscretePosterior(quantized, self.quantizers[0].codebook_size)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode quantized latents (B, C, h, w) without quantizing them again."""
        codes: Tensor | None = None
        for i, own in enumerate(split_maps(self.decoder_input(latents), self.maps)):
            codes = self._codes(i, own, codes)
        return cast(Tensor, self.net.decoder(self.net.post_quant_conv(codes)).float())

    def indices_to_latents(self, indices: Tensor) -> Tensor:
        """Return `codebook.latents` of the indices."""
        indices = require_indices(
            indices, self.quantizers[0].codebook_size, places_of_maps(self.maps), device=self.device
        )
        own = split_maps(indices, self.maps)
        return pack_maps([q.codes(chosen[:, 0]) for q, chosen in zip(self.quantizers, own, strict=True)])

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Decode `indices_to_latents`: reconstructions (B, 3, H, W) float32, not clamped."""
        return self.decode(self.indices_to_latents(indices))

    def draw(self, pixel_values: Tensor, noise: Tensor | None = None) -> tuple[DiscretePosterior, Tensor]:
        posterior = self.encode(pixel_values, noise=noise)
        return posterior, posterior.mode()

    def learn(self, posteriors: Sequence[Posterior]) -> dict[str, Tensor]:
        """Update codes that learn without gradients, unless everything before the decoder is frozen; the statistics are
        means over the maps.

        K-means of a map waits until the step after that of the coarser map: before, its latents are conditioned on
        codes that are replaced.
        """
        batches = [cast(DiscretePosterior, posterior).quantized for posterior in posteriors]
        learns = any(parameter.requires_grad for parameter in self.encoder_parameters().values())
        waiting = [quantizer.awaits_codes for quantizer in self.quantizers]
        found = []
        for i, quantizer in enumerate(self.quantizers):
            own = [self._of_map(i, batch) for batch in batches]
            found.append(quantizer.learn(own) if learns and not any(waiting[:i]) else quantizer.usage(own))
        return _over_maps(found, torch.mean)

    def needed_terms(self) -> frozenset[str]:
        """The quantizers' needed terms; none if their codes are frozen."""
        learns = any(parameter.requires_grad for parameter in self.net.quantizers.parameters())
        return self.quantizers[0].needed_terms if learns else frozenset()

    def learned_parameters(self) -> list[Tensor]:
        return list(self.net.quantizers.parameters())

    def _codes(self, number: int, own: Tensor, coarser: Tensor | None) -> Tensor:
        """Return the codes of a map and of all coarser ones at its places, for its own and `_codes` of the one
        before."""
        own = own.to(self.dtype)
        return own if coarser is None else torch.cat([own, self.net.upsamplers[number - 1](coarser)], dim=1)

    def _of_map(self, number: int, batch: Quantized) -> Quantized:
        """Return what the quantizer of one map had computed."""
        quantized, indices, latents = (
            split_maps(packed.detach(), self.maps)[number] for packed in (batch.quantized, batch.indices, batch.latents)
        )
        return Quantized(quantized, indices[:, 0], {}, {}, latents)


def _over_maps(values: Sequence[dict[str, Tensor]], reduce: Any) -> dict[str, Tensor]:
    """Return the sum or the mean of each name's values."""
    return {name: reduce(torch.stack([of_map[name] for of_map in values]), dim=0) for name in values[0]}
