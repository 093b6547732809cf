"""Shift-tolerant LPIPS: a perceptual distance whose weights all come from PyPI, so that it needs no other download.

Source: Ghildyal and Liu, Shift-tolerant Perceptual Similarity Metric, arXiv 2207.13686. Every pooling is a max with
stride 1 followed by a binomial blur with stride 2; in the AlexNet form this also replaces the first convolution's
stride.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.core.resources import installed_folder
from ldm_ae.io.legacy import read_legacy_weights
from ldm_ae.losses.perceptual._feature_distance import FeatureDistance


class BlurDownsample(nn.Module):
    """Downsampling of (B, C, H, W) by about 2: reflect padding by 2, then the 3x3 binomial filter with stride 2."""

    def forward(self, hidden: Tensor) -> Tensor:
        channels = hidden.shape[1]
        row = hidden.new_tensor([0.25, 0.5, 0.25])
        kernel = (row[:, None] * row).expand(channels, 1, 3, 3)
        return F.conv2d(F.pad(hidden, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=channels)


def _pool(kernel_size: int) -> list[nn.Module]:
    return [nn.MaxPool2d(kernel_size, stride=1), BlurDownsample()]


def _conv_relu(in_channels: int, out_channels: int, kernel_size: int = 3) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2), nn.ReLU(inplace=True)]


def _vgg() -> list[nn.Sequential]:
    """Return VGG16's convolutions, pooled before each stage but the first."""
    widths = [(3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512), (512, 512, 512, 512)]
    stages = []
    for i, stage in enumerate(widths):
        layers = _pool(2) if i else []
        for in_channels, out_channels in pairwise(stage):
            layers += _conv_relu(in_channels, out_channels)
        stages.append(nn.Sequential(*layers))
    return stages


def _alex() -> list[nn.Sequential]:
    """Return AlexNet's convolutions. The first has stride 1 and a blur, not stride 4; blur and pool halve the size."""
    return [
        nn.Sequential(nn.Conv2d(3, 64, 11, padding=2), BlurDownsample(), nn.ReLU(inplace=True)),
        nn.Sequential(*_pool(3), *_conv_relu(64, 192, 5)),
        nn.Sequential(*_pool(3), *_conv_relu(192, 384)),
        nn.Sequential(*_conv_relu(384, 256)),
        nn.Sequential(*_conv_relu(256, 256)),
    ]


class ShiftTolerantLPIPS(FeatureDistance):
    """Shift-tolerant LPIPS with the weights of the wheel `stlpips-pytorch` (BSD-2).

    Args:
        net: The feature network.

    Raises:
        UserError: The wheel is not installed.
    """

    short_names = ("st-lpips", "stlpips")

    def __init__(self, *, net: Literal["vgg", "alex"] = "vgg"):
        weights = read_legacy_weights(_weights_file(net))
        stages = {"vgg": _vgg, "alex": _alex}[net]()
        convolutions = [m for stage in stages for m in stage if isinstance(m, nn.Conv2d)]
        # Names in the file contain positions in the original Sequential; their order is the network's.
        names = [key.removesuffix(".weight") for key in weights if key.startswith("net.") and key.endswith(".weight")]
        for convolution, key in zip(convolutions, names, strict=True):
            convolution.load_state_dict({part: weights[f"{key}.{part}"] for part in ("weight", "bias")})
        heads = [weights[f"lin{i}.model.1.weight"].flatten() for i in range(len(stages))]
        super().__init__(f"stlpips_{net}", stages, heads)
        assert torch.equal(self.shift, weights["scaling_layer.shift"])
        assert torch.equal(self.scale, weights["scaling_layer.scale"])

    @classmethod
    def example(cls) -> ShiftTolerantLPIPS:
        return cls(net="alex")


def _weights_file(net: str) -> Path:
    if (folder := installed_folder("stlpips_pytorch")) is None:
        raise UserError("ShiftTolerantLPIPS needs the weights of stlpips-pytorch: pip install 'ldm_ae[offline]'")
    return folder / "weights" / "vST0.0" / f"{net}_shift_tolerant.pth"
