"""The network EfficientNet-Lite0.

Source: Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, arXiv 1905.11946,
table 1, in the Lite form that its authors published: no squeeze-and-excitation, ReLU6, stem and head not scaled.
Its published weights come from TensorFlow, hence padding that depends on the input's size, and an eps of 1e-3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


class Stage(NamedTuple):
    """Blocks of one width."""

    expansion: int
    kernel: int
    stride: int
    """Of the first block."""
    blocks: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(6, 3, 2, 2, 24),
    Stage(6, 5, 2, 2, 40),
    Stage(6, 3, 2, 3, 80),
    Stage(6, 5, 1, 3, 112),
    Stage(6, 5, 2, 4, 192),
    Stage(6, 3, 1, 1, 320),
)


class SameConv2d(nn.Conv2d):
    """TensorFlow's SAME padding: the output size is ceil(size / stride); odd padding is larger at right and bottom."""

    def forward(self, input: Tensor) -> Tensor:
        pads: list[int] = []
        for size, kernel, stride in zip(input.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            padding = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [padding // 2, padding - padding // 2]
        return super().forward(F.pad(input, pads))


class ConvNorm(nn.Sequential):
    """Convolution without bias, BatchNorm, and ReLU6 unless disabled."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1, relu: bool = True
    ):
        # With stride 1 and an odd kernel the padding is the same on both sides for every size.
        convolution = (
            nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, groups=groups, bias=False)
            if stride == 1
            else SameConv2d(in_channels, out_channels, kernel, stride, groups=groups, bias=False)
        )
        layers: list[nn.Module] = [convolution, nn.BatchNorm2d(out_channels, eps=1e-3)]
        super().__init__(*layers, *([nn.ReLU6()] if relu else []))


class MBConv(nn.Module):
    """Inverted bottleneck: expand, filter each channel, project; with a shortcut where the shape does not change."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, kernel: int, stride: int):
        super().__init__()
        width = in_channels * expansion
        self.expand = ConvNorm(in_channels, width) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(width, width, kernel, stride, groups=width)
        self.project = ConvNorm(width, out_channels, relu=False)
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, hidden: Tensor) -> Tensor:
        out = self.project(self.depthwise(self.expand(hidden)))
        return hidden + out if self.shortcut else out


class EfficientNetLite(nn.Module):
    """Network from (B, 3, 224, 224) RGB in about [-1, 1] to 1000 ImageNet logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 32, 3, 2)
        blocks, channels = [], 32
        for expansion, kernel, stride, count, width in STAGES:
            for i in range(count):
                blocks.append(MBConv(channels, width, expansion, kernel, stride if i == 0 else 1))
                channels = width
        self.blocks = nn.ModuleList(blocks)
        self.head = ConvNorm(channels, 1280)
        self.classifier = nn.Linear(1280, 1000)

    def features(self, pixel_values: Tensor) -> Tensor:
        """Return features (B, 1280), averaged over positions."""
        *_, hidden = self.stages(pixel_values)
        return self.head(hidden).mean(dim=(2, 3))

    def stages(self, pixel_values: Tensor) -> Iterator[Tensor]:
        """Yield the output of each stage, computed on demand."""
        hidden, blocks = self.stem(pixel_values), iter(self.blocks)
        for stage in STAGES:
            for _ in range(stage.blocks):
                hidden = next(blocks)(hidden)
            yield hidden

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.classifier(self.features(pixel_values))

    def load_published(self, weights: dict[str, Tensor]) -> None:
        """Strictly load a state dict with the keys of the efficientnet_lite_pytorch package."""
        self.load_state_dict({_our_key(key): value for key, value in weights.items()})


def _our_key(key: str) -> str:
    """Return our name of a key, such as `blocks.3.depthwise.1.bias` for `_blocks.3._bn1.bias`."""
    outside = {"_conv_stem": "stem.0", "_bn0": "stem.1", "_conv_head": "head.0", "_bn1": "head.1", "_fc": "classifier"}
    inside = {
        "_expand_conv": "expand.0", "_bn0": "expand.1", "_depthwise_conv": "depthwise.0", "_bn1": "depthwise.1",
        "_project_conv": "project.0", "_bn2": "project.1",
    }  # fmt: skip
    parts = key.split(".")
    if parts[0] != "_blocks":
        return f"{outside[parts[0]]}.{parts[1]}"
    block, layer = parts[1], parts[2]
    return f"blocks.{block}.{inside[layer]}.{parts[3]}"
