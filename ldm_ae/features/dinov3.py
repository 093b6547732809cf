"""DINOv3, a vision transformer that was trained without labels, with rotary positions and dense features.

Source: Siméoni et al., DINOv3, arXiv 2508.10104.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm_ae.features._transformers import Classes, VisionTransformer


class DINOv3(VisionTransformer):
    """DINOv3's vision transformers, through transformers 4.56 or newer. Its authors give the weights after a request.

    Args:
        weights: A folder with `config.json` and `model.safetensors`, a name on the hub such as
            `facebook/dinov3-vitb16-pretrain-lvd1689m`, or null for random weights.
        architecture: Values of transformers' `DINOv3ViTConfig`, for random weights alone.
        layers: Numbers of the blocks whose patch tokens are the maps, from 0; null takes four at equal distances (2, 5,
            8 and 11 of 12). Blocks after the last one are not computed.
        normalized: Apply the network's last normalization to each map, as DINOv3's `get_intermediate_layers` does.
        image_size: Side in pixels to which images are resized, a multiple of the patch (16); null keeps the size and
            rounds the sides to multiples of the patch.
    """

    model_types = {"dinov3_vit": Classes("DINOv3ViTConfig", "DINOv3ViTModel")}  # noqa: RUF012 - a constant

    def __init__(
        self,
        *,
        weights: str | None = "facebook/dinov3-vits16-pretrain-lvd1689m",
        architecture: Mapping[str, Any] | None = None,
        layers: Sequence[int] | None = None,
        normalized: bool = True,
        image_size: int | None = None,
    ):
        super().__init__(weights, architecture, layers, normalized, image_size)

    @property
    def blocks(self) -> nn.ModuleList:
        network = self.network
        layers: nn.ModuleList = network.model.layer if hasattr(network, "model") else network.layer  # transformers 4
        return layers

    @property
    def last_normalization(self) -> nn.Module:
        norm: nn.Module = self.network.norm
        return norm

    def set_precision(self, dtype: torch.dtype) -> DINOv3:
        frequencies = self.network.rope_embeddings.inv_freq
        super().set_precision(dtype)
        self.network.rope_embeddings.inv_freq = frequencies  # positions are computed in float32
        return self

    def block_arguments(self, images: Tensor) -> dict[str, Any]:
        return {"position_embeddings": self.network.rope_embeddings(images)}
