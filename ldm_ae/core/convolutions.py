"""Training convolutions in float32 on a CPU, with fewer multiplications than a library's direct convolutions.

A wide 3x3 convolution is computed by Winograd's F(4x4, 3x3) (arXiv 1509.09308, section 4.1): 36 multiplications for 16
outputs instead of 144, as matrix products of `torch`. oneDNN, which torch uses for float32 convolutions on a CPU, has
only direct ones, and those already run at the arithmetic peak. Activations are channels-last. Where Winograd's
algorithm does not apply, a weight gradient is computed in contiguous layout: oneDNN's takes 3 to 5 times as long
channels-last where AVX512 is missing. `docs/PERFORMANCE.md` has the measurements.

The order of sums differs: a result differs from the exact one by about 3e-6 of its norm, that of a direct convolution
by 1e-6.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

WIDE, GRADIENT_WIDE = 256, 128
"""Numbers of channels, both input and output, from which Winograd's algorithm is faster: forward, and for weights."""
PIXELS = 1024
"""Number of pixels in a batch below which transforming the kernel costs more than the algorithm saves."""
TILES = 128
"""Approximate number of 4x4-pixel tiles that are computed at once and fit in a cache."""

Pair = tuple[int, int]
ONE: Pair = (1, 1)

# Cook and Toom's one-dimensional matrices for the points 0, 1, -1, 2, -2 and infinity.
_INPUT = [
    [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1],
]  # fmt: skip
_KERNEL = [
    [1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1],
]  # fmt: skip
_OUTPUT = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


class Transforms(NamedTuple):
    """The three matrices for two dimensions."""

    inputs: Tensor
    """Transform of input tiles, (36, 36)."""
    kernel: Tensor
    """Transform of kernels, (36, 9)."""
    outputs: Tensor
    """Transform to output tiles, (16, 36)."""


@lru_cache(maxsize=1)
def _transforms() -> Transforms:
    matrices = [torch.tensor(rows, dtype=torch.float64) for rows in (_INPUT, _KERNEL, _OUTPUT)]
    return Transforms(*(torch.kron(matrix, matrix).float() for matrix in matrices))


class Kernels:
    """The transformed kernels of one weight, (36, C, D), computed on first use.

    A layer that is frozen when it is built keeps them: 4 times the memory of its weight for each direction. Another
    layer transforms its weight in each pass.
    """

    def __init__(self) -> None:
        self._weight: tuple[int, int] | None = None
        self._forward: Tensor | None = None
        self._backward: Tensor | None = None

    def of(self, weight: Tensor) -> Kernels:
        """Return self, emptied if it holds the kernels of other values."""
        if (now := (weight.data_ptr(), weight._version)) != self._weight:
            self._weight, self._forward, self._backward = now, None, None
        return self

    def forward(self, weight: Tensor) -> Tensor:
        """Return the transformed kernels (36, C, D) of a convolution's weight (D, C, 3, 3)."""
        if self._forward is None:
            self._forward = _transforms().kernel @ weight.detach().permute(2, 3, 0, 1).reshape(9, -1)
        return self._forward.view(36, *weight.shape[:2]).transpose(1, 2)

    def backward(self, weight: Tensor) -> Tensor:
        """Return those of the weight turned by 180 degrees, with inputs and outputs exchanged: (36, D, C)."""
        if self._backward is None:
            self._backward = _transforms().kernel @ weight.detach().permute(2, 3, 0, 1).reshape(9, -1).flip(0)
        return self._backward.view(36, *weight.shape[:2])


class Conv2d(nn.Conv2d):
    """A convolution with the parameters and the state dict of `torch.nn.Conv2d`."""

    _kernels: Kernels | None = None
    """Kept kernels of a frozen layer."""

    @classmethod
    def of(cls, plain: nn.Conv2d) -> Conv2d:
        """Return the same layer as a `Conv2d` that shares its parameters."""
        layer = cls(
            plain.in_channels, plain.out_channels, plain.kernel_size, plain.stride,  # type: ignore[arg-type]
            plain.padding, bias=plain.bias is not None, device="meta",  # type: ignore[arg-type]
        )  # fmt: skip
        layer.weight, layer.bias = plain.weight, plain.bias
        layer._kernels = None if plain.weight.requires_grad else Kernels()
        return layer.train(plain.training)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve as `torch.nn.Conv2d` does.

        Args:
            input: (B, C, H, W). Inputs not in float32 on a CPU, or under autocast, use torch's implementation.
        """
        if input.dtype != torch.float32 or input.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        kernels = self._kernels
        if kernels is not None:
            kernels = None if self.weight.requires_grad else kernels.of(self.weight)
        return conv2d(input, self.weight, self.bias, self.stride, self.padding, kernels)  # type: ignore[arg-type]


def speed_up(network: nn.Module) -> None:
    """Replace every convolution larger than 1x1 by `Conv2d`; parameters stay the same objects."""
    for name, layer in network.named_children():
        if _fits(layer):
            setattr(network, name, Conv2d.of(layer))  # type: ignore[arg-type]
        else:
            speed_up(layer)


def _fits(layer: nn.Module) -> bool:
    return (
        type(layer) is nn.Conv2d
        and (layer.dilation, layer.groups, layer.padding_mode) == ((1, 1), 1, "zeros")
        and max(layer.kernel_size) > 1
        and isinstance(layer.padding, tuple)
    )


def conv2d(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = ONE,
    padding: Pair = ONE,
    kernels: Kernels | None = None,
) -> Tensor:
    """Compute `convolve`, with gradients."""
    result: Tensor = _Convolution.apply(inputs, weight, bias, stride, padding, kernels)
    return result


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Pair,
        padding: Pair,
        kernels: Kernels | None,
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.settings = stride, padding
        ctx.kernels = kernels
        return convolve(inputs, weight, bias, stride, padding, kernels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        inputs, weight = ctx.saved_tensors
        of_inputs, of_weight, of_bias, *_ = ctx.needs_input_grad
        stride, padding = ctx.settings
        return (
            input_gradient(inputs, weight, gradient, stride, padding, ctx.kernels) if of_inputs else None,
            weight_gradient(inputs, weight, gradient, stride, padding) if of_weight else None,
            gradient.sum((0, 2, 3)) if of_bias else None,
            None,
            None,
            None,
        )


def convolve(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair = ONE,
    padding: Pair = ONE,
    kernels: Kernels | None = None,
) -> Tensor:
    """Compute the convolution as `torch.nn.functional.conv2d` does.

    Args:
        inputs: (B, C, H, W) float32.
        weight: (D, C, I, J).
        bias: (D,) or None.
        stride: Vertical and horizontal stride.
        padding: Rows and columns of zeros at each side.
        kernels: Kept transformed kernels of this weight, if any.

    Returns:
        (B, D, H', W').
    """
    if not _is_winograds(inputs, weight, stride, padding, WIDE):
        return functional.conv2d(inputs, weight, bias, stride, padding)
    outputs = _winograd(inputs, (kernels or Kernels()).forward(weight))
    return outputs if bias is None else outputs.add_(bias.view(-1, 1, 1))


def input_gradient(
    inputs: Tensor,
    weight: Tensor,
    gradient: Tensor,
    stride: Pair = ONE,
    padding: Pair = ONE,
    kernels: Kernels | None = None,
) -> Tensor:
    """Compute the gradient at the inputs of `convolve`; Winograd convolves with the kernel turned by 180 degrees.

    Args:
        inputs: (B, C, H, W) float32.
        weight: (D, C, I, J).
        gradient: (B, D, H', W') float32, gradient at the outputs.
        stride: As in `convolve`.
        padding: As in `convolve`.
        kernels: As in `convolve`.

    Returns:
        (B, C, H, W).
    """
    if not _is_winograds(inputs, weight, stride, padding, WIDE):
        return conv2d_input(inputs.shape, weight, gradient, stride, padding)
    return _winograd(gradient, (kernels or Kernels()).backward(weight))


def weight_gradient(
    inputs: Tensor, weight: Tensor, gradient: Tensor, stride: Pair = ONE, padding: Pair = ONE
) -> Tensor:
    """Compute the gradient at the weight of `convolve`.

    Args:
        inputs: (B, C, H, W) float32.
        weight: (D, C, I, J).
        gradient: (B, D, H', W') float32, gradient at the outputs.
        stride: As in `convolve`.
        padding: As in `convolve`.

    Returns:
        (D, C, I, J).
    """
    if not _is_winograds(inputs, weight, stride, padding, GRADIENT_WIDE):
        return conv2d_weight(inputs.contiguous(), weight.shape, gradient.contiguous(), stride, padding)
    batch, channels, height, width = inputs.shape
    matrices, padded, filters = _transforms(), _padded(inputs), len(weight)
    sums = inputs.new_zeros(36, channels, filters)
    rows = gradient.permute(0, 2, 3, 1).contiguous()
    for chunk in _chunks(batch, height // 4, width // 4, TILES):
        tiles = _tiles(matrices, padded, chunk, width // 4)
        part = chunk.of(rows).permute(2, 4, 0, 1, 3, 5).reshape(16, -1)
        sums.baddbmm_(tiles.transpose(1, 2), (matrices.outputs.T @ part).view(36, -1, filters))
    return (matrices.kernel.T @ sums.view(36, -1)).view(3, 3, channels, filters).permute(3, 2, 0, 1)


def _winograd(inputs: Tensor, kernel: Tensor) -> Tensor:
    """Convolve (B, C, H, W) with a transformed kernel (36, C, D) to (B, D, H, W), channels-last."""
    batch, _, height, width = inputs.shape
    matrices, padded = _transforms(), _padded(inputs)
    outputs = torch.empty(batch, kernel.shape[2], height, width, memory_format=torch.channels_last)
    pixels = outputs.permute(0, 2, 3, 1)
    for chunk in _chunks(batch, height // 4, width // 4, TILES):
        products = torch.bmm(_tiles(matrices, padded, chunk, width // 4), kernel)
        rows = (matrices.outputs @ products.view(36, -1)).view(4, 4, chunk.images, chunk.rows, width // 4, -1)
        chunk.of(pixels).copy_(rows.permute(2, 3, 0, 4, 1, 5))
    return outputs


def _is_winograds(inputs: Tensor, weight: Tensor, stride: Pair, padding: Pair, wide: int) -> bool:
    batch, _, height, width = inputs.shape
    return (
        (weight.shape[2:], stride, padding) == ((3, 3), ONE, ONE)
        and height % 4 == width % 4 == 0
        and min(weight.shape[:2]) >= wide
        and batch * height * width >= PIXELS
    )


def _padded(inputs: Tensor) -> Tensor:
    """Return (B, H + 2, W + 2, C), contiguous, with a border of zeros."""
    return functional.pad(inputs.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()


class _Chunk(NamedTuple):
    """Tiles of 4x4 pixels that are computed at once: some rows of tiles from some images."""

    image: int
    images: int
    row: int
    rows: int

    def of(self, pixels: Tensor) -> Tensor:
        """Return a view of these tiles of (B, H, W, C): (images, rows, 4, columns, 4, C)."""
        part = pixels[self.image : self.image + self.images, 4 * self.row : 4 * (self.row + self.rows)]
        return part.unflatten(1, (-1, 4)).unflatten(3, (-1, 4))


def _chunks(batch: int, rows: int, columns: int, tiles: int) -> Iterator[_Chunk]:
    images = max(1, tiles // (rows * columns))
    step = max(1, min(rows, tiles // columns))
    for image in range(0, batch, images):
        for row in range(0, rows, step):
            yield _Chunk(image, min(images, batch - image), row, min(step, rows - row))


def _tiles(matrices: Transforms, padded: Tensor, chunk: _Chunk, columns: int) -> Tensor:
    """Return the transformed 6x6 tiles, which overlap by two pixels: (36, tiles, C)."""
    of_image, of_row, of_column, _ = padded.stride()
    windows = padded.as_strided(
        (6, 6, chunk.images, chunk.rows, columns, padded.shape[3]),
        (of_row, of_column, of_image, 4 * of_row, 4 * of_column, 1),
        chunk.image * of_image + 4 * chunk.row * of_row,
    )
    return (matrices.inputs @ windows.reshape(36, -1)).view(36, -1, padded.shape[3])
