"""Images of several aspect ratios, each cropped to the size that is nearest to its own, or kept whole."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import torch
from PIL import Image

from ldm_ae.core.errors import UserError
from ldm_ae.images.decoding import MAX_PIXELS, Colour, ColourProfiles
from ldm_ae.images.transforms import ImageTransform, TransformedImage

Size = tuple[int, int]
"""(height, width) in pixels."""


class BucketTransform:
    """Any RGB image to the one of several sizes whose aspect ratio is nearest: resized to cover it, cropped centrally.

    Nearest is the smallest ratio between the two aspect ratios, so that a portrait is treated as the landscape that it
    is when turned. Where sizes are equally near, an image is not enlarged if that can be helped, and then takes the
    largest that it fills, or of those that it does not fill the smallest; a square one takes a landscape.

    Args:
        sizes: (height, width) of the results, in any order.
        background: RGB, 0..255, shown through transparent pixels when the loader decodes.
        colour_profiles: "convert" or "ignore" colour profiles when the loader decodes, see `Decoding`.
        max_pixels: of a file; larger ones are bad images.

    Raises:
        UserError: no size, or one that is not positive.
    """

    is_random = False

    pixels = ImageTransform.pixels

    def __init__(
        self,
        sizes: Iterable[Size],
        *,
        background: Colour = (255, 255, 255),
        colour_profiles: ColourProfiles = "convert",
        max_pixels: int = MAX_PIXELS,
    ):
        self.sizes: list[Size] = sorted(set(sizes), key=lambda size: (size[0] * size[1], size))
        if not self.sizes:
            raise UserError("there must be at least one size to crop images to")
        self._transforms = {
            size: ImageTransform(
                size=size, background=background, colour_profiles=colour_profiles, max_pixels=max_pixels
            )
            for size in self.sizes
        }
        self.decode = self._transforms[self.sizes[0]].decode
        """From a file's bytes to the image that this transform takes."""

    def describe(self) -> dict[str, object]:
        """Everything that changes the pixels, as JSON values."""
        described = self._transforms[self.sizes[0]].describe()
        del described["size"]
        return {"sizes": [list(size) for size in self.sizes]} | described

    def choose(self, height: int, width: int) -> Size:
        """The size for an image of height x width."""

        def rank(size: Size) -> tuple[Fraction, bool, int]:
            mine, other = height * size[1], width * size[0]
            enlarged = size[0] > height or size[1] > width
            area = size[0] * size[1]
            return Fraction(max(mine, other), min(mine, other)), enlarged, area if enlarged else -area

        return min(self.sizes, key=rank)

    def __call__(self, image: Image.Image, generator: torch.Generator | None = None) -> TransformedImage:
        """One image of mode RGB to (3, H, W) of one of `sizes`; BadImage as `ImageTransform`."""
        return self._transforms[self.choose(image.height, image.width)](image, generator)


class WholeTransform:
    """Any RGB image whole: its shorter side resized to a length, its sides rounded to multiples.

    Rounding cuts off less than a multiple, or half of one where the image is resized; an image that is smaller than a
    multiple without resizing is a bad image.

    Args:
        shorter: Length of the shorter side in pixels, a multiple of `multiple`; None for no resizing.
        multiple: What divides the sides of the results.
        colour_profiles: "convert" or "ignore" colour profiles when the loader decodes, see `Decoding`.
        max_pixels: of a file; larger ones are bad images.
    """

    is_random = False
    pixels = ImageTransform.pixels

    def __init__(
        self,
        shorter: int | None,
        *,
        multiple: int,
        colour_profiles: ColourProfiles = "convert",
        max_pixels: int = MAX_PIXELS,
    ):
        assert shorter is None or (shorter > 0 and shorter % multiple == 0), (shorter, multiple)
        self._shorter = shorter
        self._multiple = multiple
        self._options: dict[str, Any] = {"colour_profiles": colour_profiles, "max_pixels": max_pixels}
        self.decode = ImageTransform(size=multiple, **self._options).decode
        """From a file's bytes to the image that this transform takes."""

    def __call__(self, image: Image.Image, generator: torch.Generator | None = None) -> TransformedImage:
        """One image of mode RGB to (3, H, W) of its own size; BadImage as `ImageTransform`."""
        if self._shorter is None:
            height, width = (max(side // self._multiple, 1) * self._multiple for side in (image.height, image.width))
            return ImageTransform(size=(height, width), resize="none", **self._options)(image, generator)
        scale = self._shorter / min(image.size) / self._multiple
        height, width = (max(round(side * scale), 1) * self._multiple for side in (image.height, image.width))
        return ImageTransform(size=(height, width), **self._options)(image, generator)


def sizes_of_area(height: int, width: int, *, multiple: int = 64, max_ratio: float = 4.0) -> list[Size]:
    """Sizes of about height * width pixels and all aspect ratios that a multiple allows.

    For each side the largest other side that does not exceed the area, and the square, as NovelAI's aspect ratio
    bucketing (https://github.com/NovelAI/novelai-aspect-ratio-bucketing) and sd-scripts' `make_bucket_resolutions` do.
    The defaults are SDXL's (arXiv 2307.01952, appendix I): multiples of 64, which a U-Net with three downsamplings over
    latents of factor 8 needs, and aspect ratios from 1:4 to 4:1.

    Args:
        height: With `width`, of an image with the wanted number of pixels.
        width: See `height`.
        multiple: What divides every side.
        max_ratio: Of the longer side to the shorter.

    Raises:
        UserError: numbers that are not positive, a ratio below 1, or an area too small for the multiple.
    """
    area = height * width
    if min(height, width, multiple) < 1 or max_ratio < 1:
        raise UserError(f"an area of {height}x{width} in multiples of {multiple} up to a ratio of {max_ratio} is none")
    square = math.isqrt(area) // multiple * multiple
    if square == 0:
        raise UserError(f"an area of {height}x{width} is too small for sides that are multiples of {multiple}")
    found = {(square, square)}
    for side in range(multiple, area // multiple + 1, multiple):
        other = area // side // multiple * multiple
        if other and max(side, other) <= max_ratio * min(side, other):
            found |= {(side, other), (other, side)}
    return sorted(found)
