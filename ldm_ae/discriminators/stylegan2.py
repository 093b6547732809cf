"""StyleGAN2's residual discriminator: one logit for the whole image.

Source: Karras et al., Analyzing and Improving the Image Quality of StyleGAN, arXiv 1912.04958, section 4.1 and table 2;
minibatch deviation and equalized learning rate are those of Karras et al., arXiv 1710.10196, sections 3 and 4.1. The
widths are those of LlamaGen's (arXiv 2406.06525), whose published code has neither of the two and another blur.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.discriminators.interface import Discriminator
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.images.views import View

_SLOPE, _GAIN = 0.2, math.sqrt(2)
_LAST = range(4, 8)
"""Sides of the last map, in pixels."""


class StyleGAN2Discriminator(Discriminator):
    """Residual blocks that halve the image down to a map of 4 to 7 pixels, minibatch deviation, two linear layers.

    It takes square images of one size, with the channels of the model's images. Train it with R1.

    Args:
        image_size: Side of the images in pixels: 4, 5, 6 or 7 times a power of two, such as 256, 192 or 224.
        width: Channels of maps of 256 pixels; those of smaller maps double up to `max_width`.
        max_width: Largest number of channels.
        deviation_group: Number of images in each group of the minibatch deviation, at most the batch. It mixes the
            images of a batch, so that results depend on the number of processes and the accumulation; 1 disables it.
    """

    short_names = ("stylegan2",)

    def __init__(self, *, image_size: int = 256, width: int = 64, max_width: int = 512, deviation_group: int = 4):
        super().__init__()
        halvings = max(int(math.log2(max(image_size, 1))) - 2, 0)
        if image_size % 2**halvings or image_size // 2**halvings not in _LAST:
            raise UserError(
                "StyleGAN2Discriminator: image_size: expected 4, 5, 6 or 7 times a power of two, such as 256 or 192, "
                f"got {image_size}"
            )
        if min(width, max_width, deviation_group) < 1:
            raise UserError(
                "StyleGAN2Discriminator: expected width, max_width and deviation_group of at least 1, got "
                f"{width}, {max_width} and {deviation_group}"
            )
        self.image_size, self.deviation_group = image_size, deviation_group
        # Of maps with 4 * 2^level pixels, or up to 7 * 2^level.
        widths = [min(width * 2 ** max(6 - level, 0), max_width) for level in range(halvings + 1)][::-1]
        last, side = widths[-1], image_size // 2**halvings
        self.first = Convolution(self.pixels.channels, widths[0], 1)
        self.blocks = nn.Sequential(*(Block(widths[i], widths[i + 1]) for i in range(halvings)))
        self.last = Convolution(last + (deviation_group > 1), last, 3)
        self.hidden = Linear(last * side**2, last)
        self.out = Linear(last, 1)

    @classmethod
    def example(cls) -> StyleGAN2Discriminator:
        return cls(image_size=64, width=4, max_width=16, deviation_group=1)

    def prepare(self, pixels: PixelSpec, view: View | None = None) -> None:  # noqa: ARG002 - it sees all channels
        if pixels.channels != self.pixels.channels:
            self.first = Convolution(pixels.channels, len(self.first.weight), 1)
        self.pixels = pixels

    def forward(self, pixel_values: Tensor) -> Tensor:
        height, width = pixel_values.shape[-2:]
        if (height, width) != (self.image_size, self.image_size):
            raise UserError(
                f"it takes images of {self.image_size}x{self.image_size}, got {height}x{width}; set its image_size, or "
                "take another discriminator for images of several sizes"
            )
        hidden = self.blocks(_activate(self.first(pixel_values)))
        if self.deviation_group > 1:
            hidden = torch.cat([hidden, minibatch_deviation(hidden, self.deviation_group)], dim=1)
        hidden = _activate(self.last(hidden))
        logits: Tensor = self.out(_activate(self.hidden(hidden.flatten(1))))
        return logits


class Block(nn.Module):
    """Two 3x3 convolutions beside a 1x1 convolution, to half the size. Both ways are blurred before they are halved."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.keep = Convolution(in_channels, in_channels, 3)
        self.halve = Convolution(in_channels, out_channels, 3, down=True)
        self.skip = Convolution(in_channels, out_channels, 1, down=True, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (B, out_channels, H / 2, W / 2)."""
        found = _activate(self.halve(_activate(self.keep(hidden))))
        return (found + self.skip(hidden)) / math.sqrt(2)


class Convolution(nn.Module):
    """A convolution with an equalized learning rate: weights of N(0, 1), scaled by 1 / sqrt(inputs) at every call."""

    blur: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, down: bool = False, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.scale, self.down, self.padding = (in_channels * kernel**2) ** -0.5, down, kernel // 2
        filter_ = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("blur", filter_.outer(filter_), persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the convolution of (B, C, H, W), with `down` of half its size."""
        weight = self.weight * self.scale
        if not self.down:
            return F.conv2d(hidden, weight, self.bias, padding=self.padding)
        channels = hidden.shape[1]
        blur = self.blur.expand(channels, 1, 4, 4)
        if self.padding == 0:  # only every second pixel of the blurred map is used
            return F.conv2d(F.conv2d(hidden, blur, padding=1, stride=2, groups=channels), weight, self.bias)
        hidden = F.conv2d(hidden, blur, padding=1 + self.padding, groups=channels)
        return F.conv2d(hidden, weight, self.bias, stride=2)


class Linear(nn.Module):
    """A linear layer with an equalized learning rate."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.scale = in_features**-0.5

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (B, out_features)."""
        return F.linear(hidden, self.weight * self.scale, self.bias)


def minibatch_deviation(hidden: Tensor, group: int) -> Tensor:
    """Return the mean standard deviation within groups of images, as a map (B, 1, H, W) of one value per image.

    Args:
        hidden: (B, C, H, W).
        group: Images of a group; the largest divisor of B up to it is taken.
    """
    count = len(hidden)
    size = max(size for size in range(1, min(group, count) + 1) if count % size == 0)
    grouped = hidden.float().unflatten(0, (size, count // size))
    deviations = (grouped.var(dim=0, correction=0) + 1e-8).sqrt().mean(dim=(1, 2, 3))
    return deviations.repeat(size)[:, None, None, None].expand(-1, 1, *hidden.shape[2:]).to(hidden.dtype)


def _activate(hidden: Tensor) -> Tensor:
    return F.leaky_relu(hidden, _SLOPE) * _GAIN
