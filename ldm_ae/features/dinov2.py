"""DINOv2, a vision transformer that was trained without labels.

Source: Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, arXiv 2304.07193; with registers,
Darcet et al., Vision Transformers Need Registers, arXiv 2309.16588.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ldm_ae.features._transformers import Classes, VisionTransformer


class DINOv2(VisionTransformer):
    """DINOv2 with or without registers, through transformers.

    Args:
        weights: A folder with `config.json` and `model.safetensors`, a name on the hub such as
            `facebook/dinov2-base` or `facebook/dinov2-with-registers-base`, or null for random weights.
        architecture: Values of transformers' `Dinov2Config`, for random weights alone.
        layers: Numbers of the blocks whose patch tokens are the maps, from 0; null takes four at equal distances (2, 5,
            8 and 11 of 12). Blocks after the last one are not computed.
        normalized: Apply the network's last normalization to each map, as DINOv2's `get_intermediate_layers` does.
        image_size: Side in pixels to which images are resized, a multiple of the patch (14); null keeps the size and
            rounds the sides to multiples of the patch.
    """

    model_types = {  # noqa: RUF012 - a constant
        "dinov2": Classes("Dinov2Config", "Dinov2Model"),
        "dinov2_with_registers": Classes("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel"),
    }

    def __init__(
        self,
        *,
        weights: str | None = "facebook/dinov2-small",
        architecture: Mapping[str, Any] | None = None,
        layers: Sequence[int] | None = None,
        normalized: bool = True,
        image_size: int | None = None,
    ):
        super().__init__(weights, architecture, layers, normalized, image_size)

    @property
    def blocks(self) -> nn.ModuleList:
        layers: nn.ModuleList = self.network.encoder.layer
        return layers
