"""ConvNeXt, a convolutional classifier.

Source: Liu et al., A ConvNet for the 2020s, arXiv 2201.03545.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ldm_ae.features._transformers import Classes, StagedNetwork


class ConvNeXt(StagedNetwork):
    """ConvNeXt (version 1 or 2), through transformers.

    Args:
        weights: A folder with `config.json` and `model.safetensors`, a name on the hub such as
            `facebook/convnext-tiny-224`, or null for random weights.
        architecture: Values of transformers' `ConvNextConfig`, for random weights alone.
        layers: Numbers of the stages whose outputs are the maps, from 0; null takes all four. Stages after the last one
            are not computed, and then there are no logits.
        image_size: Side in pixels to which images are resized, such as 224; null keeps the size.
    """

    model_types = {  # noqa: RUF012 - a constant
        "convnext": Classes("ConvNextConfig", "ConvNextForImageClassification"),
        "convnextv2": Classes("ConvNextV2Config", "ConvNextV2ForImageClassification"),
    }

    def __init__(
        self,
        *,
        weights: str | None = "facebook/convnext-small-224",
        architecture: Mapping[str, Any] | None = None,
        layers: Sequence[int] | None = None,
        image_size: int | None = None,
    ):
        super().__init__(weights, architecture, layers, image_size)

    @classmethod
    def example(cls) -> ConvNeXt:
        sizes = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 2, 1], "num_labels": 10}
        return cls(weights=None, architecture=sizes)

    @property
    def trunk(self) -> Any:
        return getattr(self.network, self.network.config.model_type)

    def embed(self, images: Tensor) -> Tensor:
        hidden: Tensor = self.trunk.embeddings(images)
        return hidden
