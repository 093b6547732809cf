"""Missing data within images: how it travels, and how losses and scores leave it out.

Images have the value `MISSING` at their missing elements, which is outside of the range [-1, 1] of data. A network thus
sees where data is missing, and no mask has to travel beside the images: flips, turns and crops of an image are those of
its mask. `resize` and whatever else averages pixels must treat missing elements by themselves.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

MISSING = -1.25
"""The value of missing elements in `pixel_values`: exact in float32, bfloat16 and float16."""
_THRESHOLD = -1.125  # between data, at least -1, and missing elements
FILLED = 0.0
"""The value of missing elements in what networks compare: the middle of the range."""


def known(pixel_values: Tensor) -> Tensor:
    """Return where images (B, C, H, W) have data, bool of the same shape."""
    return pixel_values > _THRESHOLD


def fill(reconstructions: Tensor, pixel_values: Tensor, value: float = FILLED) -> tuple[Tensor, Tensor]:
    """Return both images with the same value where data is missing in `pixel_values`, so that they agree there.

    Args:
        reconstructions: (B, C, H, W); they get no gradient at missing elements.
        pixel_values: (B, C, H, W), their target, with `MISSING` at missing elements.
        value: The value of both.
    """
    missing = ~known(pixel_values)
    return reconstructions.masked_fill(missing, value), pixel_values.masked_fill(missing, value)


def keep_missing(change: Callable[[Tensor], Tensor], pixel_values: Tensor) -> Tensor:
    """Apply a linear change of size, such as a bilinear interpolation, to images with missing elements.

    A changed element is the mean of its known elements by the weights of the change; it is missing where their weights
    sum to less than half.

    Args:
        change: A map of (B, C, H, W) to (B, C, H', W').
        pixel_values: (B, C, H, W), with `MISSING` at missing elements.
    """
    where = known(pixel_values)
    weights = change(where.to(pixel_values))
    values = change(pixel_values.masked_fill(~where, 0.0)) / weights.clamp(min=0.5)
    return values.masked_fill(weights < 0.5, MISSING)


def mean_over_known(errors: Tensor, pixel_values: Tensor) -> Tensor:
    """Return the mean over images of each image's mean error over its known elements, a scalar.

    Means of single images do not depend on the other images of a batch, so that accumulated gradients are those of one
    large batch. An image without known elements has the error 0.

    Args:
        errors: (B, C, H, W), or (B, 1, H, W) for errors of whole pixels.
        pixel_values: (B, C, H, W), with `MISSING` at missing elements.
    """
    where = known(pixel_values)
    if errors.shape[1] == 1:
        where = where.all(dim=1, keepdim=True)
    counts = where.flatten(1).sum(dim=1).clamp(min=1)
    return (errors.masked_fill(~where, 0.0).flatten(1).sum(dim=1) / counts).mean()


def known_windows(where: Tensor, side: int) -> Tensor:
    """Return where a whole window has data, (B, C, H - side + 1, W - side + 1) bool, from (B, C, H, W) bool."""
    return -F.max_pool2d(-where.float(), side, stride=1) > 0.5


def without_missing(pixel_values: Tensor, value: float = FILLED) -> Tensor:
    """Return images with a value at their missing elements."""
    return torch.where(known(pixel_values), pixel_values, value)
