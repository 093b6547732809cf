"""The distance of any frozen network's feature maps: DINO, ConvNeXt, EfficientNet-Lite0, ...

Source: the loss of ViTok-v2, arXiv 2605.05331, as published in github.com/Na-VAE/dino_perceptual: for each block of
DINO the features of each patch are divided by their length, and the squared differences are averaged over channels,
patches and blocks. It is LPIPS's equation (arXiv 1801.03924, equation 1) with weights 1 / channels. The published code
includes the class token and the registers in the average, against its own description; here, as described, only patches
count. ViTok-v2 compares one or two random tiles of 256x256 pixels of an image; here the tiles cover the image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.features import FeatureNetwork
from ldm_ae.losses.perceptual._feature_distance import layer_distance
from ldm_ae.losses.perceptual._of_features import FeatureLoss


class DeepFeatures(FeatureLoss):
    """Mean squared difference of feature maps, averaged over the maps.

    Args:
        features: The network, and the maps that are compared. ViTok-v2's: `DINOv2` with all blocks in `layers` and
            `normalized: false`.
        unit_length: Divide the features of each place by their length, as LPIPS does.
        tile: Side in pixels of the tiles into which images are cut; tiles cover the image and overlap where the side
            does not divide it. Null gives the network whole images.
    """

    short_names = ("deep-features",)
    kind = "features"

    def __init__(self, *, features: FeatureNetwork, unit_length: bool = True, tile: int | None = None):
        if tile is not None and tile < 1:
            raise UserError(f"DeepFeatures: expected a tile of at least 1 pixel, got {tile}")
        super().__init__(features)
        self.unit_length, self.tile = unit_length, tile

    def compared(self, pixel_values: Tensor) -> list[Tensor]:
        return self.features(self._tiles(pixel_values))

    def distance(self, found: list[Tensor], real: list[Tensor]) -> Tensor:
        return torch.stack([self._distance(*pair) for pair in zip(found, real, strict=True)]).mean(dim=0)

    def _distance(self, found: Tensor, real: Tensor) -> Tensor:
        """Return the distance of one map, (B,)."""
        if self.unit_length:
            return layer_distance(
                found, real, found.new_full((found.shape[1],), 1 / found.shape[1], dtype=torch.float32)
            )
        return (found.float() - real.float()).square().mean(dim=(1, 2, 3))

    def _tiles(self, images: Tensor) -> Tensor:
        """Return the tiles of images (B, 3, H, W), (tiles * B, 3, h, w): all first tiles, all second ones, ..."""
        if self.tile is None:
            return images
        (height, rows), (width, columns) = (_starts(side, self.tile) for side in images.shape[-2:])
        return torch.cat([images[:, :, y : y + height, x : x + width] for y in rows for x in columns])


def _starts(side: int, tile: int) -> tuple[int, list[int]]:
    """Return the side of a tile, and where the tiles that cover a side begin, at equal distances."""
    tile = min(tile, side)
    count = math.ceil(side / tile)
    return tile, [round(number * (side - tile) / max(count - 1, 1)) for number in range(count)]
