"""Activations of an image that are read in bands of rows: stored ones, and ones that are computed when read."""

from __future__ import annotations

import abc
from collections import deque

import torch
from torch import Tensor, nn
from torch.nn import functional

_IN_CACHE = 2**17
"""Elements of a block that a CPU's second-level cache holds in float32."""


class ChannelMoments:
    """Sums over the bands of each channel's deviations from its first value, and of their squares.

    Deviations, so that the variance of values far from zero does not vanish beside the square of their mean.
    """

    def __init__(self) -> None:
        self._count = 0
        self._first = self._sum = self._squares = torch.zeros(())

    def add(self, band: Tensor) -> None:
        """Add a band (1, C, h, W)."""
        if self._count == 0:
            self._first = band[:, :, :1, :1].to(_wide(band), copy=True)  # a view would keep the band
        self._count += band.shape[2] * band.shape[3]
        # On a CPU in blocks that its cache holds, which takes a third of the time.
        block = _IN_CACHE // (band.shape[1] * band.shape[3]) if band.device.type == "cpu" else band.shape[2]
        dtype = _sum_dtype(band)
        for rows in band.split(max(block, 1), dim=2):
            deviation = rows - self._first
            self._sum = self._sum + deviation.sum((0, 2, 3), dtype=dtype)
            self._squares = self._squares + deviation.square_().sum((0, 2, 3), dtype=dtype)

    def affine(self, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
        """Return scale and shift, (1, C, 1, 1), with which the normalization is x * scale + shift."""
        deviation = self._sum / self._count
        by_group = (self._first.flatten() + deviation).view(norm.num_groups, -1)
        mean = by_group.mean(dim=1, keepdim=True)
        variance = (self._squares / self._count - deviation.square()).view_as(by_group).mean(dim=1, keepdim=True)
        variance = variance + (by_group - mean).square().mean(dim=1, keepdim=True)
        scale = (variance + norm.eps).rsqrt().expand_as(by_group).reshape(-1)
        shift = -mean.expand_as(by_group).reshape(-1) * scale
        if norm.affine:
            scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
        return scale.view(1, -1, 1, 1), shift.view(1, -1, 1, 1)


def _sum_dtype(values: Tensor) -> torch.dtype:
    """Return the dtype of sums over an image: float64, which only Apple's GPUs lack."""
    return torch.float32 if values.device.type == "mps" else torch.float64


def _wide(values: Tensor) -> torch.dtype:
    """Return the dtype for normalization: float32, also for values in half precision."""
    return torch.promote_types(values.dtype, torch.float32)


class Activation(abc.ABC):
    """An activation (1, C, height, width) that is read in rows."""

    def __init__(self, channels: int, height: int, width: int):
        self.channels, self.height, self.width = channels, height, width

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.channels * self.height * self.width

    @property
    def row_size(self) -> int:
        """Elements for each of its rows of the largest tensor that reading creates."""
        return self.channels * self.width

    @property
    @abc.abstractmethod
    def held(self) -> int:
        """Number of elements in memory from which it is read."""

    @abc.abstractmethod
    def read(self, start: int, stop: int) -> Tensor:
        """Return rows [start, stop), (1, C, stop - start, width); the caller does not change them."""

    @abc.abstractmethod
    def release(self, row: int) -> None:
        """Free the memory that only rows before this one need; they are not read again."""

    @abc.abstractmethod
    def moments(self, rows: int) -> ChannelMoments:
        """Return the moments of its channels, if necessary by reading `rows` rows at a time."""


class Stored(Activation):
    """An activation in memory, as bands, each of which is freed when it is not needed any more."""

    def __init__(self, channels: int, height: int, width: int):
        super().__init__(channels, height, width)
        self._bands: deque[tuple[int, Tensor]] = deque()
        self._moments = ChannelMoments()

    def append(self, start: int, band: Tensor) -> None:
        """Add the rows from `start` on, below all others."""
        self._bands.append((start, band))
        self._moments.add(band)

    @property
    def held(self) -> int:
        return self.size

    def read(self, start: int, stop: int) -> Tensor:
        parts = []
        for first, band in self._bands:
            above, below = max(start, first), min(stop, first + band.shape[2])
            if above < below:
                parts.append(band[:, :, above - first : below - first])
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def release(self, row: int) -> None:
        while self._bands and self._bands[0][0] + self._bands[0][1].shape[2] <= row:
            self._bands.popleft()

    def moments(self, rows: int) -> ChannelMoments:  # noqa: ARG002
        return self._moments


class Whole(Stored):
    """A whole tensor (1, C, H, W) that the caller holds."""

    def __init__(self, values: Tensor):
        super().__init__(*values.shape[1:])
        self.append(0, values)


class Computed(Activation):
    """An activation that is computed from others whenever it is read."""

    def moments(self, rows: int) -> ChannelMoments:
        found = ChannelMoments()
        for start in range(0, self.height, rows):
            found.add(self.read(start, min(start + rows, self.height)))
        return found


class Convolved(Computed):
    """A convolution of a source, after normalization and activation or upsampling by 2, if there is any.

    Args:
        source: Input.
        conv: The convolution.
        affine: Scale and shift of the input's normalization.
        activation: Activation after the normalization.
        upsample: Whether the input is enlarged by 2, to the nearest pixels.
        padding: Rows and columns of zeros before and after the input, if they differ from the convolution's own.
        keeps: Keep the rows that were read last, for a residual block whose branch and shortcut read nearly the same.
    """

    def __init__(
        self, source: Activation, conv: nn.Conv2d, *, affine: tuple[Tensor, Tensor] | None = None,
        activation: nn.Module | None = None, upsample: bool = False, padding: tuple[int, int] | None = None,
        keeps: bool = False,
    ):  # fmt: skip
        self._keeps = keeps
        self._source, self._conv, self._affine, self._activation = source, conv, affine, activation
        self._factor = 2 if upsample else 1
        self._latest: tuple[int, int, Tensor] | None = None
        (self._stride, _), (self._kernel, _) = conv.stride, conv.kernel_size
        own = conv.padding[0]
        assert isinstance(own, int)
        self._before, self._after = (own, own) if padding is None else padding
        height, width = (
            (side * self._factor + self._before + self._after - self._kernel) // self._stride + 1
            for side in (source.height, source.width)
        )
        super().__init__(conv.out_channels, height, width)

    @property
    def row_size(self) -> int:
        # A row needs `stride` rows of the source; an upsampled row is twice as long as the source's.
        return max(self.channels * self.width, self._source.row_size * self._stride * self._factor)

    @property
    def held(self) -> int:
        return self._source.held

    def read(self, start: int, stop: int) -> Tensor:
        if not self._keeps:
            return self._computed(start, stop)
        if self._latest is None or not (self._latest[0] <= start and stop <= self._latest[1]):
            self._latest = None
            self._latest = (start, stop, self._computed(start, stop))
        first, _, rows = self._latest
        return rows[:, :, start - first : stop - first]

    def _computed(self, start: int, stop: int) -> Tensor:
        first, last = start * self._stride - self._before, (stop - 1) * self._stride - self._before + self._kernel
        height = self._source.height * self._factor
        above, below = max(first, 0), min(last, height)
        source_first, source_last = above // self._factor, -(-below // self._factor)
        values = self._source.read(source_first, source_last)
        if self._affine is not None:
            values = self._normalized(values)
        if self._factor > 1:
            values = functional.interpolate(values, scale_factor=float(self._factor), mode="nearest")
            values = values[:, :, above - source_first * self._factor :][:, :, : below - above]
        # Zeros stand for rows beyond the image only; rows beyond the band are read.
        sides = (self._before, self._after) if self._before != self._after else (0, 0)
        if (padding := (*sides, above - first, last - below)) != (0, 0, 0, 0):
            values = functional.pad(values, padding)
        width = self._before if self._before == self._after else 0
        return functional.conv2d(values, self._conv.weight, self._conv.bias, self._stride, (0, width))

    def _normalized(self, values: Tensor) -> Tensor:
        assert self._affine is not None
        values = values.to(_wide(values))
        scale, shift = (value.to(values.dtype) for value in self._affine)
        values = torch.addcmul(shift, values, scale)
        if isinstance(self._activation, nn.SiLU):
            values = functional.silu(values, inplace=True)
        elif self._activation is not None:
            values = self._activation(values)
        return values.to(self._conv.weight.dtype)

    def release(self, row: int) -> None:
        self._latest = None
        self._source.release(max(row * self._stride - self._before, 0) // self._factor)


class Residual(Computed):
    """The sum of a residual block's branch and its shortcut."""

    def __init__(self, branch: Convolved, source: Activation, shortcut: nn.Conv2d | None):
        super().__init__(branch.channels, branch.height, branch.width)
        self._branch, self._source = branch, source
        self._shortcut = source if shortcut is None else Convolved(source, shortcut)

    @property
    def row_size(self) -> int:
        return max(self._branch.row_size, self._source.row_size)

    @property
    def held(self) -> int:
        return self._branch.held + self._source.held

    def read(self, start: int, stop: int) -> Tensor:
        return self._branch.read(start, stop).add_(self._shortcut.read(start, stop))

    def release(self, row: int) -> None:
        self._branch.release(row)
        self._source.release(max(row - 2, 0))  # the halo of the branch's two convolutions
