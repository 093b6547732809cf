"""The forward pass of diffusers' convolutional `Encoder` and `Decoder` in bands of rows, equal to that of the whole.

A convolution of some rows needs those rows of its input and a halo above and below. A GroupNorm needs the mean and the
variance of the whole image, which are summed up band by band before the band that uses them is computed. So a layer's
activation is one of two things: *stored* in bands, or *computed* again from its source whenever rows of it are read.
Two kinds of layers are stored, one at a time: the output of each residual block, whose bands take the place of those of
its input, and what attention reads, at a low resolution. Others are stored only where this does not need more memory
than the largest residual block's output; the upsampled input of a convolution exists for one band only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.models.wrappers.bands import Activation, Computed, Convolved, Residual, Stored, Whole


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
        activation: Activation = Convolved(Whole(image), part.conv_in, keeps=True)
        for block in blocks:
            activation = self._block(block, activation)
        affine = activation.moments(self._rows(activation)).affine(part.conv_norm_out)
        last = Convolved(activation, part.conv_out, affine=affine, activation=part.conv_act)
        output: Tensor | None = None
        for start, band in self._bands(last):
            if output is None:
                output = band.new_empty((1, last.channels, last.height, last.width))
            output[:, :, start : start + band.shape[2]] = band
        assert output is not None
        return output

    def _block(self, block: Any, activation: Activation) -> Activation:
        resnets, attentions = list(block.resnets), list(getattr(block, "attentions", ()))
        # A middle block begins with a residual block more than it has attentions; the others have one for each.
        skipped = len(resnets) - len(attentions) if attentions else 0
        for i, resnet in enumerate(resnets):
            before = attentions[i - 1] if skipped and i else None
            after = attentions[i] if attentions and not skipped else None
            activation = self._attention(before, activation)
            activation = self._attention(after, self._resnet(resnet, activation))
        for sampler in getattr(block, "downsamplers", None) or ():
            activation = self._store(Convolved(activation, sampler.conv, padding=(0, 1)))
        for sampler in getattr(block, "upsamplers", None) or ():
            activation = self._store_if_small(
                Convolved(activation, sampler.conv, upsample=True, keeps=True), frees=True
            )
        return activation

    def _resnet(self, block: Any, source: Activation) -> Activation:
        rows = self._rows(source)
        affine = source.moments(rows).affine(block.norm1)
        first = self._store_if_small(
            Convolved(source, block.conv1, affine=affine, activation=block.nonlinearity), beside=source.held
        )
        affine = first.moments(self._rows(first)).affine(block.norm2)
        second = Convolved(first, block.conv2, affine=affine, activation=block.nonlinearity)
        return self._store(Residual(second, source, block.conv_shortcut))

    def _attention(self, attention: nn.Module | None, source: Activation) -> Activation:
        if attention is None:
            return source
        values = source.read(0, source.height)
        source.release(source.height)
        return Whole(attention(values))

    def _store_if_small(self, activation: Computed, *, beside: int = 0, frees: bool = False) -> Activation:
        """Store an activation if it fits into the budget beside other elements; its source is freed if it `frees`."""
        if activation.size + beside > self._budget:
            return activation
        return self._store(activation, frees=frees)

    def _store(self, activation: Activation, *, frees: bool = True) -> Stored:
        stored = Stored(activation.channels, activation.height, activation.width)
        for start, band in self._bands(activation, frees=frees):
            stored.append(start, band)
        return stored

    def _bands(self, activation: Activation, *, frees: bool = True) -> Iterator[tuple[int, Tensor]]:
        """Yield first row and values of the bands of an activation; `frees` what only the rows so far need."""
        rows = self._rows(activation)
        for start in range(0, activation.height, rows):
            stop = min(start + rows, activation.height)
            yield start, activation.read(start, stop)
            if frees:
                activation.release(stop)

    def _rows(self, activation: Activation) -> int:
        """Return the rows of a band."""
        return max(self._elements // activation.row_size, 1)


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
