"""Images other than RGB that a program holds, as `pixel_values`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ldm_ae.core.errors import UserError, printable
from ldm_ae.images.decoding import BadImage
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.images.transforms import ImageTransform


def pixel_values_of_samples(
    images: Any, pixels: PixelSpec, *, size: int | tuple[int, int] | None, value_range: Any = None, name: str = "images"
) -> list[Tensor]:
    """Convert paths, arrays of stored samples and tensors of pixel values to a (C, H, W) float32 tensor for each image.

    Args:
        images: A path; an array (H, W), (C, H, W) or (H, W, C); a tensor (C, H, W) or (N, C, H, W) in [-1, 1]; or a
            list of these.
        pixels: The images.
        size: Size to which paths and arrays are resized and cropped; None keeps theirs.
        value_range: Refused: `low` and `high` of `pixels` are the range.
        name: Name of the argument, for messages.

    Raises:
        UserError: Another type, shape or value, or a file that cannot be read.
    """
    if value_range is not None:
        raise UserError(f"value_range has no effect for a model of images that are {pixels}; remove it")
    if isinstance(images, list | tuple):
        if not images:
            raise UserError(f"{name} is empty; give at least one image")
        parts = (pixel_values_of_samples(image, pixels, size=size, name=f"{name}[{i}]") for i, image in
                 enumerate(images))  # fmt: skip
        return [tensor for part in parts for tensor in part]
    if isinstance(images, Tensor):
        if size is not None:
            raise UserError(f"{name} is a tensor, which size does not resize; resize it before the call")
        batch = images.detach()[None] if images.ndim == 3 else images.detach()
        pixels.require_images(batch, name)
        return list(batch.float())
    try:
        if isinstance(images, str | Path):
            data, name = Path(images).read_bytes(), printable(images)
        elif isinstance(images, np.ndarray):
            buffer = io.BytesIO()
            np.save(buffer, images, allow_pickle=False)
            data = buffer.getvalue()
        else:
            raise UserError(f"{name} must be paths, NumPy arrays or tensors, got {type(images).__name__}")
        decoded = ImageTransform(size=1 if size is None else size, pixels=pixels).decode(data).image
        if size is None:
            return [decoded.pixel_values()]
        return [ImageTransform(size=size, pixels=pixels)(decoded).pixel_values]
    except (OSError, ValueError) as error:
        raise UserError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except BadImage as error:
        raise UserError(f"{name}: {error}") from None
