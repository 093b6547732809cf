"""The forward pass of diffusers' convolutional `Encoder` and `Decoder` in bands of rows, equal to that of the whole.

A convolution of some rows needs those rows of its input and a halo above and below. A GroupNorm needs the mean and the
variance of the whole image, which are summed up band by band before the band that uses them is computed. So a layer's
activation is one of two things: *stored* in bands, or *computed* again from its source whenever rows of it are read.
Two kinds of layers are stored, one at a time: the output of each residual block, whose bands take the place of those of
its input, and what attention reads, at a low resolution. Others are stored only where this does not need more memory
than the largest residual block's output; the upsampled input of a convolution exists for one band only.
"""

from __future__ import annotations

import abc
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ldm_ae.core.errors import UserError

_IN_CACHE = 2**17
"""Elements of a block that a CPU's second-level cache holds in float32."""


@contextmanager
def in_bands(parts: Sequence[nn.Module], area: int) -> Iterator[None]:
    """Compute the parts in bands within the context. Their hooks run as before; those of modules inside do not.

    Args:
        parts: Modules for which `has_bands` is true.
        area: Pixels of a band at the full resolution; bands of all layers have as many activations.

    Raises:
        UserError: A gradient would be needed.
    """
    if torch.is_grad_enabled() and any(parameter.requires_grad for part in parts for parameter in part.parameters()):
        raise UserError("exact tiling does not compute gradients: use torch.no_grad(), or blended tiling")
    for part in parts:
        part.forward = _Forward(part, area)
    try:
        yield
    finally:
        for part in parts:
            vars(part).pop("forward", None)


def has_bands(part: Any) -> bool:
    """Return whether `in_bands` can compute a module: an `Encoder` or `Decoder` of which every layer is known.

    `MaskConditionDecoder` is one too: without a mask, it is a `Decoder`.
    """
    from diffusers.models.attention_processor import Attention
    from diffusers.models.autoencoders.vae import Decoder, Encoder, MaskConditionDecoder
    from diffusers.models.downsampling import Downsample2D
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.upsampling import Upsample2D

    def known(module: Any) -> bool:
        if isinstance(module, nn.Conv2d):
            return module.padding_mode == "zeros" and module.dilation == (1, 1) and module.groups == 1
        if isinstance(module, ResnetBlock2D):
            plain = module.time_emb_proj is None and module.time_embedding_norm in ("default", "group")
            same_size = module.upsample is None and module.downsample is None
            return plain and same_size and module.dropout.p == 0 and module.output_scale_factor == 1
        if isinstance(module, Attention):
            return module.spatial_norm is None
        if isinstance(module, Upsample2D):
            return isinstance(module.conv, nn.Conv2d) and module.norm is None and module.interpolate
        if isinstance(module, Downsample2D):
            return isinstance(module.conv, nn.Conv2d) and module.norm is None and module.padding == 0
        return True

    if type(part) not in (Encoder, Decoder, MaskConditionDecoder):
        return False
    blocks: list[Any] = [part.mid_block, *(part.down_blocks if isinstance(part, Encoder) else part.up_blocks)]
    resnets = [resnet for block in blocks for resnet in block.resnets]
    norms = [norm for resnet in resnets for norm in (getattr(resnet, "norm1", None), getattr(resnet, "norm2", None))]
    return (
        all(type(resnet) is ResnetBlock2D for resnet in resnets)
        and all(type(norm) is nn.GroupNorm for norm in (*norms, part.conv_norm_out))
        and all(known(module) for module in part.modules())
    )


class _ChannelMoments:
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


class _Activation(abc.ABC):
    """An activation (1, C, height, width) that is read in rows."""

    def __init__(self, channels: int, height: int, width: int):
        self.channels, self.height, self.width = channels, height, width

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.channels * self.height * self.width

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
    def moments(self, rows: int) -> _ChannelMoments:
        """Return the moments of its channels, if necessary by reading `rows` rows at a time."""


class _Stored(_Activation):
    """An activation in memory, as bands, each of which is freed when it is not needed any more."""

    def __init__(self, channels: int, height: int, width: int):
        super().__init__(channels, height, width)
        self._bands: deque[tuple[int, Tensor]] = deque()
        self._moments = _ChannelMoments()

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

    def moments(self, rows: int) -> _ChannelMoments:  # noqa: ARG002
        return self._moments


class _Tensor(_Stored):
    """A whole tensor (1, C, H, W) that the caller holds."""

    def __init__(self, values: Tensor):
        super().__init__(*values.shape[1:])
        self.append(0, values)


class _Computed(_Activation):
    """An activation that is computed from others whenever it is read."""

    def moments(self, rows: int) -> _ChannelMoments:
        found = _ChannelMoments()
        for start in range(0, self.height, rows):
            found.add(self.read(start, min(start + rows, self.height)))
        return found


class _Convolved(_Computed):
    """A convolution of a source, after normalization and activation or upsampling by 2, if there is any."""

    def __init__(
        self, source: _Activation, conv: nn.Conv2d, *, affine: tuple[Tensor, Tensor] | None = None,
        activation: nn.Module | None = None, upsample: bool = False, padding: tuple[int, int] | None = None,
    ):  # fmt: skip
        self._source, self._conv, self._affine, self._activation = source, conv, affine, activation
        self._factor = 2 if upsample else 1
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
    def held(self) -> int:
        return self._source.held

    def read(self, start: int, stop: int) -> Tensor:
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
        self._source.release(max(row * self._stride - self._before, 0) // self._factor)


class _Residual(_Computed):
    """The sum of a residual block's branch and its shortcut."""

    def __init__(self, branch: _Convolved, source: _Activation, shortcut: nn.Conv2d | None):
        super().__init__(branch.channels, branch.height, branch.width)
        self._branch, self._source = branch, source
        self._shortcut = source if shortcut is None else _Convolved(source, shortcut)

    @property
    def held(self) -> int:
        return self._branch.held + self._source.held

    def read(self, start: int, stop: int) -> Tensor:
        return self._branch.read(start, stop).add_(self._shortcut.read(start, stop))

    def release(self, row: int) -> None:
        self._branch.release(row)
        self._source.release(max(row - 2, 0))  # the halo of the branch's two convolutions


class _Forward:
    """The forward method of an `Encoder` or `Decoder`, image by image, in bands."""

    def __init__(self, part: Any, area: int):
        self._part = part
        first = part.conv_in if hasattr(part, "down_blocks") else part.conv_out
        self._elements = area * max(first.in_channels, first.out_channels)
        """Elements of a band."""
        self._budget = 0
        """Elements that may be stored at a time."""

    def __call__(self, sample: Tensor, latent_embeds: Tensor | None = None) -> Tensor:
        assert latent_embeds is None, "`has_bands` is false for networks with spatial normalization"
        return torch.cat([self._image(image[None]) for image in sample])

    def _image(self, image: Tensor) -> Tensor:
        part = self._part
        encodes = hasattr(part, "down_blocks")
        blocks = [*part.down_blocks, part.mid_block] if encodes else [part.mid_block, *part.up_blocks]
        self._budget = _largest(blocks, *image.shape[2:])
        activation: _Activation = _Convolved(_Tensor(image), part.conv_in)
        for block in blocks:
            activation = self._block(block, activation)
        affine = activation.moments(self._rows(activation)).affine(part.conv_norm_out)
        last = _Convolved(activation, part.conv_out, affine=affine, activation=part.conv_act)
        output: Tensor | None = None
        for start, band in self._bands(last):
            if output is None:
                output = band.new_empty((1, last.channels, last.height, last.width))
            output[:, :, start : start + band.shape[2]] = band
        assert output is not None
        return output

    def _block(self, block: Any, activation: _Activation) -> _Activation:
        resnets, attentions = list(block.resnets), list(getattr(block, "attentions", ()))
        # A middle block begins with a residual block more than it has attentions; the others have one for each.
        skipped = len(resnets) - len(attentions) if attentions else 0
        for i, resnet in enumerate(resnets):
            before = attentions[i - 1] if skipped and i else None
            after = attentions[i] if attentions and not skipped else None
            activation = self._attention(before, activation)
            activation = self._attention(after, self._resnet(resnet, activation))
        for sampler in getattr(block, "downsamplers", None) or ():
            activation = self._store(_Convolved(activation, sampler.conv, padding=(0, 1)))
        for sampler in getattr(block, "upsamplers", None) or ():
            activation = self._store_if_small(_Convolved(activation, sampler.conv, upsample=True), frees=True)
        return activation

    def _resnet(self, block: Any, source: _Activation) -> _Activation:
        rows = self._rows(source)
        affine = source.moments(rows).affine(block.norm1)
        first = self._store_if_small(
            _Convolved(source, block.conv1, affine=affine, activation=block.nonlinearity), beside=source.held
        )
        affine = first.moments(self._rows(first)).affine(block.norm2)
        second = _Convolved(first, block.conv2, affine=affine, activation=block.nonlinearity)
        return self._store(_Residual(second, source, block.conv_shortcut))

    def _attention(self, attention: nn.Module | None, source: _Activation) -> _Activation:
        if attention is None:
            return source
        values = source.read(0, source.height)
        source.release(source.height)
        return _Tensor(attention(values))

    def _store_if_small(self, activation: _Computed, *, beside: int = 0, frees: bool = False) -> _Activation:
        """Store an activation if it fits into the budget beside other elements; its source is freed if it `frees`."""
        if activation.size + beside > self._budget:
            return activation
        return self._store(activation, frees=frees)

    def _store(self, activation: _Activation, *, frees: bool = True) -> _Stored:
        stored = _Stored(activation.channels, activation.height, activation.width)
        for start, band in self._bands(activation, frees=frees):
            stored.append(start, band)
        return stored

    def _bands(self, activation: _Activation, *, frees: bool = True) -> Iterator[tuple[int, Tensor]]:
        """Yield first row and values of the bands of an activation; `frees` what only the rows so far need."""
        rows = self._rows(activation)
        for start in range(0, activation.height, rows):
            stop = min(start + rows, activation.height)
            yield start, activation.read(start, stop)
            if frees:
                activation.release(stop)

    def _rows(self, activation: _Activation) -> int:
        """Return the rows of a band."""
        return max(self._elements // (activation.channels * activation.width), 1)


def _largest(blocks: Sequence[Any], height: int, width: int) -> int:
    """Return the elements of the largest output of a residual block."""
    largest = 0
    for block in blocks:
        channels = block.resnets[-1].conv2.out_channels
        largest = max(largest, channels * height * width)
        if getattr(block, "downsamplers", None):
            height, width = height // 2, width // 2
        if getattr(block, "upsamplers", None):
            height, width = height * 2, width * 2
    return largest
