"""Specification of a model's images and latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldm_ae.core.code_maps import places_of_maps, split_maps
from ldm_ae.core.errors import UserError
from ldm_ae.images.pixels import PixelSpec


def _is_number(value: object) -> bool:
    """Return whether the value is a number in float32's range; an integer may exceed even that of Python's float."""
    largest = torch.finfo(torch.float32).max
    return isinstance(value, float | int) and not isinstance(value, bool) and -largest <= value <= largest


@dataclass(frozen=True, kw_only=True)
class LatentSpec:
    """The shape of a model's latents, and how they are scaled for a diffusion model."""

    channels: int
    """C of the latents (B, C, h, w)."""
    downsample_factor: int
    """H / h, a power of two unless h is 1."""
    scaling_factor: float
    """Factor of the shifted latents, or with `latents_mean` and `latents_std` of the whitened ones."""
    shift_factor: float = 0.0
    """Value subtracted before scaling, unless `latents_mean` and `latents_std` are set."""
    latents_mean: tuple[float, ...] | None = None
    """Mean of each of the `scaled_channels`; with `latents_std` it replaces `shift_factor`."""
    latents_std: tuple[float, ...] | None = None
    """Standard deviation of each of the `scaled_channels`; latents are divided by it before `scaling_factor` multiplies
    them."""
    codebook_size: int | None = None
    """Number of codes of a discrete model, None for a continuous one."""
    codebook_levels: int | None = None
    """Q of the indices (B, Q, h, w) of residual quantization or of packed maps, None where indices are (B, h, w)."""
    codebook_maps: int | None = None
    """Number of maps of a hierarchical model: each has twice the sides of the one before, and latents and indices pack
    them at the places of the coarsest (`ldm_ae.core.code_maps`). None where indices are one map, or levels of it."""
    patch_size: int = 1
    """p: `scale` first packs each p x p latents into one of C p^2 channels, as FLUX.2's pipelines do with p = 2."""
    image_size: int | None = None
    """Side in pixels of the only images that the model takes, which are square; None for any size."""

    def __post_init__(self) -> None:
        optional = (self.codebook_size, self.codebook_levels, self.codebook_maps, self.image_size)
        counts = [self.channels, self.downsample_factor, self.patch_size, *(n for n in optional if n is not None)]
        if any(type(count) is not int or count < 1 for count in counts):
            raise UserError(
                "latents: channels, downsample_factor, codebook_size, codebook_levels, codebook_maps, patch_size and "
                "image_size must be whole numbers above 0"
            )
        if self.codebook_maps is not None and self.codebook_levels != places_of_maps(self.codebook_maps):
            raise UserError(
                f"latents: {self.codebook_maps} maps of codes have {places_of_maps(self.codebook_maps)} levels, got "
                f"codebook_levels {self.codebook_levels}"
            )
        if self.codebook_size is not None and self.codebook_size > 2**63:
            raise UserError(f"latents: codebook_size is {self.codebook_size}; an index can hold at most 2^63 codes")
        vectors = [vector for vector in (self.latents_mean, self.latents_std) if vector is not None]
        if any(type(vector) is not tuple or len(vector) != self.scaled_channels for vector in vectors):
            raise UserError("latents: latents_mean and latents_std must hold one number per channel")
        scales = (self.scaling_factor, *(self.latents_std or ()))
        if not all(_is_number(value) for value in (*scales, self.shift_factor, *(self.latents_mean or ()))):
            raise UserError("latents: the factors that scale them must be finite numbers")
        if not all(scales):
            raise UserError("latents: scaling_factor and latents_std must not be 0")

    @property
    def scaled_channels(self) -> int:
        """Channels of `scaled_latents`: C p^2."""
        return self.channels * self.patch_size**2

    @property
    def image_multiple(self) -> int:
        """Divisor of the sides of images whose latents `scale` takes: the downsample factor times the patch size."""
        return self.downsample_factor * self.patch_size

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (h, w) for an image of this size.

        Raises:
            UserError: The size is not divisible by the downsample factor, or is not the model's only one.
        """
        factor = self.downsample_factor
        if self.image_size is not None and (height, width) != (self.image_size, self.image_size):
            raise UserError(
                f"the model takes images of {self.image_size}x{self.image_size} only, got height x width "
                f"{height}x{width}; resize and crop them to {self.image_size}"
            )
        if height % factor or width % factor or height <= 0 or width <= 0:
            raise UserError(
                f"an image of height x width {height}x{width} is not divisible by the model's downsample factor "
                f"{factor}; use for example {max(height // factor, 1) * factor}x{max(width // factor, 1) * factor}"
            )
        return height // factor, width // factor

    def index_maps(self, indices: Tensor) -> list[Tensor]:
        """Return indices, shaped like `Posterior.indices`, as maps (B, h_i, w_i), the coarsest first.

        A hierarchical model has maps of several sizes; the levels of residual quantization have one size, the first
        level is the first map; other indices are one map.
        """
        if self.codebook_maps is not None:
            return [one[:, 0] for one in split_maps(indices, self.codebook_maps)]
        return [indices] if self.codebook_levels is None else list(indices.unbind(dim=1))

    def _mean_std(self, like: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.latents_mean is None or self.latents_std is None:
            return None
        mean, std = (like.new_tensor(v).view(1, -1, 1, 1) for v in (self.latents_mean, self.latents_std))
        return mean, std

    def pack(self, latents: Tensor) -> Tensor:
        """Return latents (B, C, h, w) as (B, C p^2, h/p, w/p): channel c p^2 + p i + j holds place (i, j) of a patch.

        Raises:
            UserError: h or w is not divisible by p.
        """
        size = self.patch_size
        if size == 1:
            return latents
        height, width = latents.shape[-2:]
        if height % size or width % size:
            raise UserError(
                f"latents of h x w {height}x{width} cannot be packed {size}x{size} for a diffusion model; use images "
                f"whose height and width are divisible by {self.downsample_factor * size}"
            )
        return nn.functional.pixel_unshuffle(latents, size)

    def unpack(self, packed: Tensor) -> Tensor:
        """Return packed latents (B, C p^2, h/p, w/p) as (B, C, h, w): the inverse of `pack`."""
        return packed if self.patch_size == 1 else nn.functional.pixel_shuffle(packed, self.patch_size)

    def scale(self, latents: Tensor) -> Tensor:
        """Convert latents (B, C, h, w) to scaled_latents as the pipelines that read this specification do.

        The latents are packed to (B, C p^2, h/p, w/p) where the patch size p is above 1. Without vectors the result is
        (latents - shift_factor) * scaling_factor: Stable Diffusion, SDXL, Kolors and DiT where the shift is 0, SD3 and
        FLUX with any shift. With vectors it is (latents - latents_mean) / latents_std * scaling_factor: SDXL, and,
        where the factor is 1, FLUX.2 and the pipelines and trainers that read vectors without a factor; all others
        ignore vectors and decode wrongly.
        """
        packed = self.pack(latents)
        if (mean_std := self._mean_std(packed)) is not None:
            return (packed - mean_std[0]) * self.scaling_factor / mean_std[1]
        return (packed - self.shift_factor) * self.scaling_factor

    def unscale(self, scaled_latents: Tensor) -> Tensor:
        """Convert scaled_latents (B, C p^2, h/p, w/p) to latents (B, C, h, w): the inverse of `scale`."""
        if (mean_std := self._mean_std(scaled_latents)) is not None:
            return self.unpack(scaled_latents * mean_std[1] / self.scaling_factor + mean_std[0])
        return self.unpack(scaled_latents / self.scaling_factor + self.shift_factor)


@dataclass(frozen=True, kw_only=True)
class Codebook:
    """The codes of a discrete model."""

    method: str
    """Name of the quantizer, such as `FSQ`, for messages."""
    size: int
    """K: indices are in [0, K)."""
    levels: int | None
    """Q of the indices (B, Q, h, w) of residual quantization or of packed maps, None where indices are (B, h, w)."""
    latents: Callable[[Tensor], Tensor]
    """Convert indices, shaped like `Posterior.indices` and of any integer dtype, to latents (B, C, h, w) float32;
    UserError for a wrong shape or an index without a code."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderSpec:
    """Both ends of an autoencoder, which are its input and output images, and the latents between."""

    pixels: PixelSpec
    latents: LatentSpec
