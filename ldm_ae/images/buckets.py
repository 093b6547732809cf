"""Images of several aspect ratios, each cropped to the size nearest to its own, or kept whole."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any, Literal

import torch
from PIL import Image

from ldm_ae.core.errors import UserError
from ldm_ae.images.decoding import MAX_PIXELS, Colour, ColourProfiles
from ldm_ae.images.georeference import Window
from ldm_ae.images.pixels import RGB, PixelSpec
from ldm_ae.images.samples import Samples
from ldm_ae.images.transforms import ImageTransform, TransformedImage

Size = tuple[int, int]
"""(height, width) in pixels."""


class BucketTransform:
    """Resizing of an image to cover the size of nearest aspect ratio among several, then a crop.

    Nearest is the smallest ratio between the two aspect ratios, so that a portrait is treated like the same image
    turned to landscape. Among equally near sizes, one that needs no enlarging is preferred: the largest that the image
    fills, or the smallest if it fills none; a square image takes a landscape size.

    Args:
        sizes: (height, width) of the results, in any order.
        crop: Position of the crop, "center" or "random" (uniform over all positions).
        flip: Mirror every second image, at random.
        background: RGB, 0..255, shown through transparent pixels when the loader decodes.
        colour_profiles: "convert" or "ignore" colour profiles when the loader decodes, see `Decoding`.
        max_pixels: Maximum pixels of a file; larger ones are bad images.
        pixels: The images, see `ImageTransform`.

    Raises:
        UserError: There is no size, or one is not positive.
    """

    def __init__(
        self,
        sizes: Iterable[Size],
        *,
        crop: Literal["center", "random"] = "center",
        flip: bool = False,
        background: Colour = (255, 255, 255),
        colour_profiles: ColourProfiles = "convert",
        max_pixels: int = MAX_PIXELS,
        pixels: PixelSpec = RGB,
    ):
        self.pixels = pixels
        self.sizes: list[Size] = sorted(set(sizes), key=lambda size: (size[0] * size[1], size))
        if not self.sizes:
            raise UserError("there must be at least one size to crop images to")
        self.transforms = {
            size: ImageTransform(
                size=size, crop=crop, flip=flip, background=background, colour_profiles=colour_profiles,
                max_pixels=max_pixels, pixels=pixels,
            )
            for size in self.sizes
        }  # fmt: skip
        """The transform to each size."""
        self.decode = self.transforms[self.sizes[0]].decode
        """Decoder of a file's bytes to the image that this transform accepts."""

    @property
    def is_random(self) -> bool:
        """Whether calls need a generator."""
        return self.transforms[self.sizes[0]].is_random

    def describe(self) -> dict[str, object]:
        """Return everything that changes the pixels, as JSON values."""
        described = self.transforms[self.sizes[0]].describe()
        del described["size"]
        return {"sizes": [list(size) for size in self.sizes]} | described

    def choose(self, height: int, width: int) -> Size:
        """Return the size for an image of height x width."""

        def rank(size: Size) -> tuple[Fraction, bool, int]:
            mine, other = height * size[1], width * size[0]
            enlarged = size[0] > height or size[1] > width
            area = size[0] * size[1]
            return Fraction(max(mine, other), min(mine, other)), enlarged, area if enlarged else -area

        return min(self.sizes, key=rank)

    def __call__(self, image: Image.Image | Samples, generator: torch.Generator | None = None) -> TransformedImage:
        """Transform one image to (C, H, W) of one of `sizes`; BadImage as in `ImageTransform`."""
        return self.transforms[self.choose(image.height, image.width)](image, generator)

    def window(self, size: tuple[int, int]) -> Window:
        """See `ImageTransform.window`."""
        return self.transforms[self.choose(size[1], size[0])].window(size)


class WholeTransform:
    """Resizing of a whole image: its shorter side to a length, its sides rounded to multiples.

    Rounding cuts off less than a multiple, or half of one if the image is resized; an image that is smaller than a
    multiple without resizing is a bad image.

    Args:
        shorter: Length of the shorter side in pixels, a multiple of `multiple`; None for no resizing.
        multiple: Divisor of the sides of the results.
        colour_profiles: "convert" or "ignore" colour profiles when the loader decodes, see `Decoding`.
        max_pixels: Maximum pixels of a file; larger ones are bad images.
        pixels: The images, see `ImageTransform`.
    """

    is_random = False
    sizes: tuple[Size, ...] = ()
    """Empty, because the number of sizes is unlimited."""

    def __init__(
        self,
        shorter: int | None,
        *,
        multiple: int,
        colour_profiles: ColourProfiles = "convert",
        max_pixels: int = MAX_PIXELS,
        pixels: PixelSpec = RGB,
    ):
        assert shorter is None or (shorter > 0 and shorter % multiple == 0), (shorter, multiple)
        self.pixels = pixels
        self._shorter = shorter
        self._multiple = multiple
        self._options: dict[str, Any] = {"colour_profiles": colour_profiles, "max_pixels": max_pixels, "pixels": pixels}
        self.decode = ImageTransform(size=multiple, **self._options).decode
        """Decoder of a file's bytes to the image that this transform accepts."""

    def describe(self) -> dict[str, object]:
        """Return everything that changes the pixels, as JSON values."""
        resize: Literal["none"] | None = "none" if self._shorter is None else None
        described = ImageTransform(size=self._multiple, resize=resize, **self._options).describe()
        size = "native" if self._shorter is None else f"shorter side {self._shorter}"
        return described | {"size": size, "multiple": self._multiple}

    def __call__(self, image: Image.Image | Samples, generator: torch.Generator | None = None) -> TransformedImage:
        """Transform one image to (C, H, W) of its own size; BadImage as in `ImageTransform`."""
        return self._of_size(image.size)(image, generator)

    def window(self, size: tuple[int, int]) -> Window:
        """See `ImageTransform.window`."""
        return self._of_size(size).window(size)

    def _of_size(self, size: tuple[int, int]) -> ImageTransform:
        """Return the transform of images of (width, height)."""
        if self._shorter is None:
            width, height = (max(side // self._multiple, 1) * self._multiple for side in size)
            return ImageTransform(size=(height, width), resize="none", **self._options)
        scale = self._shorter / min(size) / self._multiple
        width, height = (max(round(side * scale), 1) * self._multiple for side in size)
        return ImageTransform(size=(height, width), **self._options)


def sizes_of_area(height: int, width: int, *, multiple: int = 64, max_ratio: float = 4.0) -> list[Size]:
    """Return sizes of about height * width pixels and all aspect ratios that a multiple allows.

    These are, for each side, the largest other side that does not exceed the area, and the square, as in NovelAI's
    aspect ratio bucketing (https://github.com/NovelAI/novelai-aspect-ratio-bucketing) and sd-scripts'
    `make_bucket_resolutions`.
    The defaults are SDXL's (arXiv 2307.01952, appendix I): multiples of 64, which a U-Net with three downsamplings over
    latents of factor 8 needs, and aspect ratios from 1:4 to 4:1.

    Args:
        height: Height of an image with the desired number of pixels, together with `width`.
        width: See `height`.
        multiple: Divisor of every side.
        max_ratio: Maximum ratio of the longer side to the shorter.

    Raises:
        UserError: A number is not positive, the ratio is below 1, or the area is too small for the multiple.
    """
    area = height * width
    if min(height, width, multiple) < 1 or max_ratio < 1:
        raise UserError(
            f"no size has an area of {height}x{width}, sides that are multiples of {multiple} and a ratio of at most "
            f"{max_ratio}; areas, multiples and the ratio must be at least 1"
        )
    square = math.isqrt(area) // multiple * multiple
    if square == 0:
        raise UserError(f"an area of {height}x{width} is too small for sides that are multiples of {multiple}")
    found = {(square, square)}
    for side in range(multiple, area // multiple + 1, multiple):
        other = area // side // multiple * multiple
        if other and max(side, other) <= max_ratio * min(side, other):
            found |= {(side, other), (other, side)}
    return sorted(found)


def parse_size(text: str, setting: str) -> Size:
    """Parse HxW into (height, width); UserError that names the setting for anything else."""
    height, times, width = text.strip().partition("x")
    if not times or not height.isdecimal() or not width.isdecimal():
        raise UserError(f"{setting} has '{text}'; give height x width in pixels, such as 256x192")
    return int(height), int(width)
