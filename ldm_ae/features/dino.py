"""DINO, a vision transformer that was trained without labels.

Source: Caron et al., Emerging Properties in Self-Supervised Vision Transformers, arXiv 2104.14294.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ldm_ae.features._transformers import Classes, VisionTransformer


class DINO(VisionTransformer):
    """DINO (version 1), through transformers' `ViTModel`.

    Args:
        weights: A folder with `config.json` and `model.safetensors`, a name on the hub such as `facebook/dino-vits8` or
            `facebook/dino-vitb16`, or null for random weights.
        architecture: Values of transformers' `ViTConfig`, for random weights alone.
        layers: Numbers of the blocks whose patch tokens are the maps, from 0; null takes four at equal distances (2, 5,
            8 and 11 of 12). Blocks after the last one are not computed.
        normalized: Apply the network's last normalization to each map, as DINO's `get_intermediate_layers` does.
        image_size: Side in pixels to which images are resized, a multiple of the patch; null keeps the size and rounds
            the sides to multiples of the patch.
    """

    model_types = {"vit": Classes("ViTConfig", "ViTModel")}  # noqa: RUF012 - a constant
    options = {"add_pooling_layer": False}  # noqa: RUF012 - a constant

    def __init__(
        self,
        *,
        weights: str | None = "facebook/dino-vits16",
        architecture: Mapping[str, Any] | None = None,
        layers: Sequence[int] | None = None,
        normalized: bool = True,
        image_size: int | None = None,
    ):
        super().__init__(weights, architecture, layers, normalized, image_size)

    @property
    def blocks(self) -> nn.ModuleList:
        network = self.network
        layers: nn.ModuleList = (
            network.layers if hasattr(network, "layers") else network.encoder.layer
        )  # transformers 4
        return layers

    def embed(self, images: Tensor) -> Tensor:
        hidden: Tensor = self.network.embeddings(images, interpolate_pos_encoding=True)
        return hidden
