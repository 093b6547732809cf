"""Images that a program holds, as `pixel_values`, and `pixel_values` as PIL images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, Union

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ldm_ae.core.errors import UserError, printable
from ldm_ae.images.decoding import BadImage, Decoding
from ldm_ae.images.pixels import OVERSHOOT, RGB
from ldm_ae.images.transforms import ImageTransform
from ldm_ae.images.uint8 import from_levels, to_uint8

Images: TypeAlias = Union[
    Image.Image, "NDArray[Any]", Tensor, str, Path, Sequence[Union[Image.Image, "NDArray[Any]", Tensor, str, Path]]
]
"""One image, a batch, or a list of images; `pixel_values_of` states the shapes and ranges."""
Range = tuple[float, float]

ARRAY_RANGE: Range = (0.0, 1.0)
"""Range of floating-point NumPy arrays, as scikit-image and diffusers (`output_type="np"`) use them."""
_TOLERANCE = 1e-3
_COLOURS = (1, 3)
_COLOURS_OF_8_BITS = (1, 3, 4)


def pixel_values_of(
    images: Images,
    *,
    size: int | tuple[int, int] | None = None,
    value_range: Range | None = None,
    clamp: bool = False,
    name: str = "images",
) -> list[Tensor]:
    """Convert images to `pixel_values`.

    | images | shape | values |
    |---|---|---|
    | PIL image, path | any mode that the commands read | as a file: upright by EXIF, in sRGB, transparency over white |
    | NumPy array | (H, W), (H, W, C), (N, H, W, C) | uint8 levels, or floating point in [0, 1] |
    | tensor | (C, H, W), (N, C, H, W) | uint8 levels, or floating point in [-1, 1] |
    | list or tuple | any of these | |

    C is 1 (grey), 3 (RGB) or, of uint8, 4 (RGB and alpha, which is composited over white).

    Args:
        images: The images.
        size: Side of a square, or (height, width), to which images of 8 bits are resized and center-cropped; None
            keeps their sizes.
        value_range: Smallest and largest value of floating-point images, where it is not the one in the table. A tensor
            without a negative value must give it: in [-1, 1] it would have no dark pixel, and is nearly always in
            [0, 1].
        clamp: Accept floating-point values outside the range, as decoders give them, and clamp them.
        name: Name of the argument, for messages.

    Returns:
        A (3, H, W) float32 tensor for each image, in [-1, 1]; of tensors on their device, else on the CPU.

    Raises:
        UserError: no images, a wrong shape, dtype or range, values that are not finite, or a file that is not readable.
    """
    numbers = size if isinstance(size, tuple) else () if size is None else (size, size)
    if len(numbers) not in (0, 2) or not all(type(number) is int for number in numbers):
        raise UserError(f"size must be a number of pixels or (height, width), got {size!r}")
    transform = None if size is None else ImageTransform(size=size)
    return _converted(images, _Options(transform, value_range, clamp), name)


def batches_of_one_size(pixel_values: Sequence[Tensor], batch_size: int) -> Iterator[Tensor]:
    """Return batches (B, 3, H, W) of at most `batch_size` images; UserError if the images' sizes differ."""
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1")
    if len(sizes := sorted({f"{image.shape[1]}x{image.shape[2]}" for image in pixel_values})) > 1:
        listed = ", ".join([*sizes[:3], *["..."] * (len(sizes) > 3)])
        raise UserError(
            f"images must have one size, got height x width {listed}; give size=256 or another size to resize and crop "
            "them, or take them one by one"
        )
    starts = range(0, len(pixel_values), batch_size)
    return (torch.stack(list(pixel_values[start : start + batch_size])) for start in starts)


def to_uint8_image(pixel_values: Tensor) -> Image.Image:
    """Convert (3, H, W) in [-1, 1], clamped and rounded, to a PIL image: the inverse of `level / 127.5 - 1`."""
    return levels_image(to_uint8(pixel_values).cpu())


def levels_image(levels: Tensor) -> Image.Image:
    """Convert (3, H, W) uint8 to a PIL image."""
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())


def image_levels(image: Image.Image) -> Tensor:
    """Convert a PIL image of 8 bits, as `levels_image` makes them, to (3, H, W) uint8."""
    return torch.from_numpy(np.array(image.convert(RGB.mode))).permute(2, 0, 1).contiguous()


class _Options(NamedTuple):
    transform: ImageTransform | None
    value_range: Range | None
    clamp: bool


def _converted(images: Any, options: _Options, name: str) -> list[Tensor]:
    transform = options.transform
    if isinstance(images, list | tuple):
        if not images:
            raise UserError(f"{name} is empty; give at least one image")
        parts = (_converted(image, options, f"{name}[{i}]") for i, image in enumerate(images))
        return [tensor for part in parts for tensor in part]
    if isinstance(images, str | Path):
        return [_of_8_bits(_read_file(Path(images), name), transform, name)]
    if isinstance(images, Image.Image):
        try:
            return [_of_8_bits(Decoding().of_image(images).image, transform, name)]
        except BadImage as error:
            raise UserError(f"{name}: {error}") from None
    if isinstance(images, np.ndarray):
        batch = _batch_of_array(images, name)
        levels, default = images.dtype == np.uint8, ARRAY_RANGE
    elif isinstance(images, Tensor):
        batch = _batch_of_tensor(images, name)
        levels, default = images.dtype == torch.uint8, None
    else:
        raise UserError(
            f"{name} must be PIL images, paths, NumPy arrays or tensors, or a list of these, got "
            f"{type(images).__name__}"
        )
    if levels:
        return [_of_8_bits(_pil_of_levels(image), transform, name) for image in batch]
    if transform is not None:
        raise UserError(
            f"{name} are of {images.dtype}; size resizes images of 8 bits only. Resize them before the call"
        )
    return list(_of_floats(batch, options.value_range or default, name, clamp=options.clamp))


def _read_file(path: Path, name: str) -> Image.Image:
    if path.is_dir():
        raise UserError(
            f"{name} is the folder {printable(path)}; give its files, or use ldm_ae.evaluate or "
            "ldm_ae.latents.encode_images, which read folders"
        )
    try:
        return Decoding()(path.read_bytes()).image
    except OSError as error:
        raise UserError(f"{name} cannot be read: {printable(path)}: {error.strerror}") from None
    except BadImage as error:
        raise UserError(f"{printable(path)}: {error}") from None


def _of_8_bits(image: Image.Image, transform: ImageTransform | None, name: str) -> Tensor:
    """Convert an RGB image."""
    if transform is None:
        return from_levels(torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous())
    try:
        return transform(image).pixel_values
    except BadImage as error:
        raise UserError(f"{name}: {error}") from None


def _pil_of_levels(levels: Tensor) -> Image.Image:
    """Convert (C, H, W) uint8 to an RGB image, with alpha composited over white."""
    array = levels.permute(1, 2, 0).cpu().contiguous().numpy()
    return Decoding().of_image(Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)).image


def _batch_of_array(array: NDArray[Any], name: str) -> Tensor:
    """Return (N, C, H, W) of the array's dtype."""
    supported = array.dtype == np.uint8 or array.dtype.kind == "f"
    if not supported:
        raise UserError(
            f"{name} must be uint8 or floating point, got {array.dtype}; "
            + ("divide by 65535" if array.dtype == np.uint16 else "convert levels 0 to 255 by .astype('uint8')")
        )
    channels = _COLOURS_OF_8_BITS if array.dtype == np.uint8 else _COLOURS
    batch = array[..., None] if array.ndim == 2 else array
    if batch.ndim not in (3, 4) or batch.shape[-1] not in channels or 0 in batch.shape:
        fix = ""
        if batch.ndim in (3, 4) and batch.shape[-3] in channels:
            fix = f"; the channels seem to be first: np.moveaxis({name}, -3, -1)"
        elif batch.ndim in (3, 4) and batch.shape[-1] == 4:
            fix = "; composite the alpha channel over a background, or give uint8"
        raise UserError(
            f"{name} must be (H, W), (H, W, C) or (N, H, W, C) with C of {_listed(channels)}, got {array.shape}{fix}"
        )
    batch = batch if batch.dtype in (np.uint8, np.float32, np.float64) else batch.astype(np.float32)
    tensor = torch.from_numpy(np.ascontiguousarray(batch.astype(batch.dtype.newbyteorder("="), copy=False)))
    return (tensor[None] if tensor.ndim == 3 else tensor).permute(0, 3, 1, 2)


def _batch_of_tensor(tensor: Tensor, name: str) -> Tensor:
    """Return (N, C, H, W) of the tensor's dtype."""
    if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
        raise UserError(
            f"{name} must be uint8 or floating point, got {tensor.dtype}; convert levels 0 to 255 by .to(torch.uint8)"
        )
    channels = _COLOURS_OF_8_BITS if tensor.dtype == torch.uint8 else _COLOURS
    batch = tensor.detach()[None] if tensor.ndim == 3 else tensor.detach()
    if batch.ndim != 4 or batch.shape[1] not in channels or 0 in batch.shape:
        fix = ""
        if batch.ndim == 4 and batch.shape[-1] in channels:
            order = "(0, 3, 1, 2)" if tensor.ndim == 4 else "(2, 0, 1)"
            fix = f"; the channels seem to be last: {name}.permute{order}"
        elif tensor.ndim == 2:
            fix = f"; a grey image is {name}[None]"
        raise UserError(
            f"{name} must be (C, H, W) or (N, C, H, W) with C of {_listed(channels)}, got {tuple(tensor.shape)}{fix}"
        )
    return batch


def _of_floats(batch: Tensor, value_range: Range | None, name: str, *, clamp: bool) -> Tensor:
    """Convert (N, C, H, W) in `value_range` to (N, 3, H, W) float32 in [-1, 1]."""
    batch = batch.float()
    least, most = float(batch.min()), float(batch.max())
    if value_range is None and least >= 0 and (clamp or most <= 1 + _TOLERANCE):
        raise UserError(
            f"{name} is a tensor without negative values, so that its range is unclear: give value_range=(0, 1) if it "
            "is in [0, 1], or value_range=(-1, 1)"
        )
    low, high = RGB.range if value_range is None else value_range
    if not low < high:
        raise UserError(f"value_range must go from a smaller to a larger value, got {value_range}")
    room = torch.inf if clamp else OVERSHOOT if (low, high) == RGB.range else _TOLERANCE
    if not low - room <= least <= most <= high + room or not math.isfinite(most - least):
        raise UserError(
            f"{name} must be in [{low:g}, {high:g}], got values from {least:.4g} to {most:.4g}. "
            "Give levels 0 to 255 as uint8, another range as value_range=(low, high), and clip values that overshoot"
        )
    pixel_values = batch if (low, high) == RGB.range else (batch - low) * (2.0 / (high - low)) - 1.0
    return (pixel_values.clamp(*RGB.range) if clamp else pixel_values).expand(-1, RGB.channels, -1, -1)


def _listed(channels: tuple[int, ...]) -> str:
    return f"{', '.join(map(str, channels[:-1]))} or {channels[-1]}"
