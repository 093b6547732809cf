"""The distance of a network's features, layer by layer, which LPIPS and its variants share.

Source: Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, arXiv 1801.03924,
equation 1: d(x, y) = sum over layers of the mean over positions of sum_c w_c (f_c(x)/|f(x)| - f_c(y)/|f(y)|)².
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ldm_ae.core.precision import INFERENCE_LAYOUT, LAYOUTS
from ldm_ae.losses.perceptual.interface import PerceptualLoss

# Mean and standard deviation of ImageNet, for pixel values in [-1, 1] (the numbers of the lpips package's scaling
# layer).
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
EPS = 1e-10
CACHED_ELEMENTS = 2**17
"""Size of a float32 map: half a megabyte, so that a few such maps fit into one core's second-level cache."""


class FeatureDistance(PerceptualLoss):
    """A feature network in stages, and non-negative weights per channel.

    Real images' features are taken without a graph.

    Args:
        name: What a score by this network is called.
        stages: Modules applied in turn; the output of each is one layer of features.
        heads: For each stage the weights of its channels, (C,) each.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, name: str, stages: Sequence[nn.Module], heads: Sequence[Tensor]):
        super().__init__(name)
        self.stages = nn.ModuleList(stages)
        for number, head in enumerate(heads):
            self.register_buffer(f"head_{number}", head)
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, -1, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, -1, 1, 1))
        self.set_precision(torch.float32)

    @property
    def heads(self) -> list[Tensor]:
        """Return the weights of each stage's channels, (C,) float32 each."""
        return [self.get_buffer(f"head_{number}") for number in range(len(self.stages))]

    def features(self, pixel_values: Tensor) -> Iterator[Tensor]:
        """Yield each layer's features, (B, C_l, H_l, W_l) in the network's dtype, computed on demand."""
        hidden = ((pixel_values.float() - self.shift) / self.scale).to(self.dtype)
        hidden = hidden.contiguous(memory_format=LAYOUTS[INFERENCE_LAYOUT])
        for stage in self.stages:
            hidden = stage(hidden)
            yield hidden

    def forward(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        with torch.autocast(pixel_values.device.type, enabled=False):
            with torch.no_grad():
                real = list(self.features(pixel_values))
            total = torch.zeros(len(pixel_values), device=pixel_values.device)
            for layer, target, head in zip(self.features(reconstructions), real, self.heads, strict=True):
                total = total + layer_distance(layer, target, head)
        return total


def layer_distance(features: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Return the mean over places of sum_c w_c (f_c/|f| - g_c/|g|)² for each image, (B,) float32.

    Args:
        features: f, (B, C, h, w); only these receive a gradient.
        target: g, (B, C, h, w).
        weights: w, (C,) float32.
    """
    distances: Tensor = _LayerDistance.apply(features, target, weights)
    return distances


class _LayerDistance(torch.autograd.Function):
    """Mean over positions of sum_c w_c (f_c/|f| - g_c/|g|)² and its gradient at f, with few passes over the features.

    A network's first layers are so large that this costs as much as their convolutions if every operation writes a
    whole map. Here all operations are applied to one piece that fits the processor's cache at a time, in float32.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, target: Tensor, head: Tensor) -> Tensor:
        ctx.save_for_backward(features, target, head)
        pieces = _pieces(_rows(features), _rows(target))
        distances = [torch.mv(_unit(f)[0].sub_(_unit(g)[0]).square_(), head) for f, g in pieces]
        return torch.cat(distances).view(len(features), -1).mean(dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        features, target, head = ctx.saved_tensors
        batch, channels, height, width = features.shape
        result = features.new_empty(batch * height * width, channels)
        factors = (gradient * (2 / (height * width))).repeat_interleave(height * width)[:, None]
        # With u = f/|f|, v = g/|g| and h = w (u - v) the gradient of one position is 2 (h - u <u, h>) / |f|.
        for f, g, factor, out in _pieces(_rows(features), _rows(target), factors, result):
            (u, inverse_length), (v, _) = _unit(f), _unit(g)
            h = torch.sub(u, v, out=v).mul_(head)
            along = (u * h).sum(dim=1, keepdim=True)
            out.copy_(h.sub_(u.mul_(along)).mul_(inverse_length.mul_(factor)))
        return result.view(batch, height, width, channels).permute(0, 3, 1, 2), None, None


def _rows(features: Tensor) -> Tensor:
    """Reshape (B, C, H, W) to (BHW, C), a view of channels-last features."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def _pieces(*rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield matching pieces of all arguments, as many rows as the cores' caches hold; all of them on an accelerator."""
    count, channels = rows[0].shape
    if rows[0].device.type == "cpu":
        count = max(CACHED_ELEMENTS * torch.get_num_threads() // channels, 1)
    return zip(*(tensor.split(count) for tensor in rows), strict=True)


def _unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows (n, C) at unit length and inverse lengths (n, 1), in float32; both zero where a row is zero."""
    rows = rows.float()
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    inverse = (length + EPS).reciprocal_().masked_fill_(length == 0, 0.0)
    return rows * inverse, inverse
