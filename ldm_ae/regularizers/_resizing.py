"""Latents and images at smaller sizes that fit each other."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.images.buckets import Size
from ldm_ae.images.missing import keep_missing
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.models import Autoencoder


def require_any_size(model: Autoencoder, regularizer: str) -> None:
    """Raise UserError for a model that takes images of one size only, or whose channels are places of finer maps."""
    if model.latent_spec.codebook_maps is not None:
        raise UserError(
            f"{regularizer} transforms latents as images, and {type(model.net).__name__} packs maps of several sizes "
            "into channels; choose another regularizer"
        )
    if (side := model.latent_spec.image_size) is not None:
        raise UserError(
            f"{regularizer} decodes smaller latents, and {type(model.net).__name__} takes images of {side}x{side} "
            "only; choose another regularizer"
        )


def fraction_of(size: Size, numerator: int, denominator: int) -> Size:
    """Return a fraction of the sides of latents, rounded down, at least 1."""
    height, width = (max(1, side * numerator // denominator) for side in size)
    return height, width


def resized_images(images: Tensor, size: Size, pixels: PixelSpec) -> Tensor:
    """Return images (B, C, H, W) as `resized` does; missing data does not become part of known data."""
    if pixels.missing is None:
        return resized(images, size)
    return keep_missing(lambda values: resized(values, size), images)


def resized(values: Tensor, size: Size) -> Tensor:
    """Return (B, C, h, w) at another size, bilinear, without a filter against aliasing, as the methods do."""
    return F.interpolate(values, size=size, mode="bilinear", align_corners=False)
