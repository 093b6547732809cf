"""The size of the images of a comparison, which fits every model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ldm_ae.core.errors import UserError
from ldm_ae.data import ImageTransform, WholeTransform
from ldm_ae.images.pixels import RGB, PixelSpec
from ldm_ae.models import LatentSpec


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a model's images may be."""

    spec: LatentSpec
    trained: int
    """Side in pixels that the model was trained at."""
    pixels: PixelSpec = RGB
    """The model's images."""


@dataclass(frozen=True, kw_only=True)
class CommonSize:
    """The transform of all images, and how its size was chosen."""

    transform: ImageTransform | WholeTransform
    multiple: int
    """Divisor of all sides: the least common multiple of what the models need."""
    reason: str
    """Reason for the size, in words."""


def common_size(
    models: Sequence[Sizes],
    size: int | Literal["native"] | None,
    **options: Any,
) -> CommonSize:
    """Return a transform to a size that fits all models.

    Args:
        models: The models, at least one, all of the same images.
        size: Side of the central square crop in pixels, which is rounded down to a multiple that fits all; `native` for
            each image's own size, cropped likewise; None for the smallest size that a model was trained at.
        options: Further arguments of the transform.

    Raises:
        UserError: The size is smaller than what the models need, or two models need images of different sizes.
    """
    options["pixels"] = models[0].pixels
    fixed = sorted({model.spec.image_size for model in models if model.spec.image_size is not None})
    if len(fixed) > 1:
        sizes = " and ".join(f"{side}x{side}" for side in fixed)
        raise UserError(f"some models take images of {sizes} only; compare models that take images of one size")
    multiple = math.lcm(*(model.spec.image_multiple for model in models))
    needed = " and ".join(str(number) for number in sorted({model.spec.image_multiple for model in models}))
    divisible = f"divisible by {multiple}" + (
        f", the least common multiple of what the models need ({needed})" if " and " in needed else ""
    )
    if size == "native":
        reason = f"each image's own size, cropped to sides that are {divisible}"
        return CommonSize(
            transform=WholeTransform(None, multiple=multiple, **options), multiple=multiple, reason=reason
        )
    if size is not None:
        wanted, reason = size, ""
    elif fixed:
        wanted, reason = fixed[0], "the only size that a model takes"
    else:
        wanted = min(model.trained for model in models)
        reason = "the smallest size that a model was trained at" if len(models) > 1 else "the size of its training"
    side = wanted // multiple * multiple
    if side == 0 and size is None:
        side, reason = multiple, f"the smallest size that is {divisible}"
    if side <= 0:
        raise UserError(f"--size is {wanted}; the models need images whose sides are {divisible}")
    if side != wanted:
        reason = f"{wanted} pixels rounded down, so that sides are {divisible}"
    return CommonSize(transform=ImageTransform(size=side, **options), multiple=multiple, reason=reason or "as given")
