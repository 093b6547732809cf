"""ResNet-50, a convolutional classifier.

Source: He et al., Deep Residual Learning for Image Recognition, arXiv 1512.03385.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ldm_ae.features._transformers import Classes, StagedNetwork


class ResNet50(StagedNetwork):
    """ResNet-50, through transformers.

    Args:
        weights: A folder with `config.json` and `model.safetensors`, a name on the hub, or null for random weights.
            Folders of ResNets of other depths work as well.
        architecture: Values of transformers' `ResNetConfig`, for random weights alone.
        layers: Numbers of the stages whose outputs are the maps, from 0; null takes all four. Stages after the last one
            are not computed, and then there are no logits.
        image_size: Side in pixels to which images are resized, such as 224; null keeps the size.
    """

    short_names = ("resnet-50",)
    model_types = {"resnet": Classes("ResNetConfig", "ResNetForImageClassification")}  # noqa: RUF012 - a constant

    def __init__(
        self,
        *,
        weights: str | None = "microsoft/resnet-50",
        architecture: Mapping[str, Any] | None = None,
        layers: Sequence[int] | None = None,
        image_size: int | None = None,
    ):
        super().__init__(weights, architecture, layers, image_size)

    @classmethod
    def example(cls) -> ResNet50:
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 2, 1], "num_labels": 10}
        return cls(weights=None, architecture=sizes)

    @property
    def trunk(self) -> Any:
        return self.network.resnet

    def embed(self, images: Tensor) -> Tensor:
        hidden: Tensor = self.trunk.embedder(images)
        return hidden
