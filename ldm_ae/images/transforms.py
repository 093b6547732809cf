"""Transform of a decoded image to `pixel_values` of one size, with a record of the operations.

Crop `adm` is ADM's `center_crop_arr` (openai/guided-diffusion, guided_diffusion/image_datasets.py), with which
published scores on ImageNet are measured: halved by a box filter while the shorter side is at least twice the size,
then resized by a bicubic filter, then cropped centrally. DiT, SiT, MAR and EDM2 make their latents with it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.images.decoding import MAX_PIXELS, BadImage, Colour, ColourProfiles, Decoding
from ldm_ae.images.georeference import Window
from ldm_ae.images.pixels import RGB, PixelSpec
from ldm_ae.images.sample_files import SampleDecoding
from ldm_ae.images.samples import Samples
from ldm_ae.images.uint8 import from_levels

# Pillow widens the bicubic kernel with the scale factor, which is antialiasing; torch's and OpenCV's default resizing
# does not. LDM's and ADM's data pipelines end with bicubic and clean-fid (arXiv 2104.11222) measures on it; Lanczos is
# sharper because it rings at edges, which an autoencoder would learn to reproduce.
_FILTER = Image.Resampling.BICUBIC


class TransformedImage(NamedTuple):
    """The result of a transform for one image."""

    pixel_values: Tensor
    """(C, H, W) float32; RGB of 8 bits is exactly uint8 / 127.5 - 1."""
    original_size: tuple[int, int]
    """(height, width) before resizing, after the EXIF rotation."""
    crop_ltrb: tuple[int, int, int, int]
    """Left, top, right, bottom of the visible part, in pixels of the original, rounded."""
    flipped: bool
    """Whether the image is mirrored left to right, after cropping."""


class ImageTransform:
    """Resizing, cropping and flipping of any image to one size.

    Args:
        size: Size of the result in pixels, one number for a square or (height, width).
        resize: Length to which the shorter side is scaled before the crop, aspect kept. None: scaled until the image
            just covers `size`. "none": not scaled; an image smaller than `size` is then a bad image.
        crop: "center", "random" (uniform over all positions), or "adm" (the center, resized as ADM does).
        flip: Mirror every second image, at random.
        background: RGB, 0..255, shown through transparent pixels when the loader decodes.
        colour_profiles: "convert" or "ignore" colour profiles when the loader decodes, see `Decoding`.
        max_pixels: Maximum pixels of a file; larger ones are bad images.
        pixels: The images. RGB of 8 bits takes any colours; others must be those of the files.

    Raises:
        UserError: A size is not positive, `resize` is too small for the crop, or an "adm" crop is not a square or has a
            `resize`.
    """

    def __init__(
        self,
        *,
        size: int | tuple[int, int],
        resize: int | Literal["none"] | None = None,
        crop: Literal["center", "random", "adm"] = "center",
        flip: bool = False,
        background: Colour = (255, 255, 255),
        colour_profiles: ColourProfiles = "convert",
        max_pixels: int = MAX_PIXELS,
        pixels: PixelSpec = RGB,
    ) -> None:
        height, width = (size, size) if isinstance(size, int) else size
        if height <= 0 or width <= 0:
            raise UserError(f"image size {width}x{height} is not positive")
        if isinstance(resize, int) and resize < min(height, width):
            raise UserError(
                f"resize {resize} is smaller than the crop {width}x{height}; give at least {min(height, width)}"
            )
        if isinstance(resize, str) and resize != "none":
            raise UserError(f'resize is "{resize}"; it must be a number of pixels, null (cover the crop) or "none"')
        if crop not in ("center", "random", "adm"):
            raise UserError(f'crop is "{crop}"; it must be "center", "random" or "adm"')
        if crop == "adm" and (height != width or resize is not None):
            what = f"resize {resize}" if resize is not None else f"{width}x{height}"
            raise UserError(f"crop adm resizes to a square of the size and does not take {what}; use crop center")
        if len(background) != 3 or not all(0 <= value <= 255 for value in background):
            raise UserError(f"background {list(background)} is not three numbers from 0 to 255")
        if colour_profiles not in ("convert", "ignore"):
            raise UserError(f'colour_profiles is "{colour_profiles}"; it must be "convert" or "ignore"')
        if max_pixels < 1:
            raise UserError(f"max_pixels is {max_pixels}; it must be at least 1")
        self.height, self.width = height, width
        self.resize = resize
        self.crop = crop
        self.flip = flip
        self.pixels = pixels
        """The images that it accepts and returns."""
        options: dict[str, Any] = {
            "background": tuple(background), "colour_profiles": colour_profiles, "max_pixels": max_pixels
        }  # fmt: skip
        self.decode: Decoding | SampleDecoding = (
            Decoding(**options) if pixels == RGB else SampleDecoding(pixels=pixels, **options)
        )
        """Decoder of a file's bytes to the image that this transform accepts."""

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of the results."""
        return [(self.height, self.width)]

    @property
    def is_random(self) -> bool:
        """Whether two calls on one image can differ."""
        return self.flip or self.crop == "random"

    def describe(self) -> dict[str, object]:
        """Return everything that changes the pixels, as JSON values. `version` counts changes of the code itself.

        `described_options` reads it. Newer options have a key only if their value differs from the meaning of an absent
        key: `colour_profiles` "ignore", `max_pixels` of `MAX_PIXELS` and `pixels` RGB.
        """
        described: dict[str, object] = {
            "version": 1,
            "size": [self.height, self.width],
            "resize": self.resize,
            "filter": "box halving, then bicubic-antialiased" if self.crop == "adm" else "bicubic-antialiased",
            "crop": self.crop,
            "flip": self.flip,
            "background": list(self.decode.background),
        }
        if self.decode.colour_profiles == "convert":
            described["colour_profiles"] = "convert"
        if self.decode.max_pixels != MAX_PIXELS:
            described["max_pixels"] = self.decode.max_pixels
        if self.pixels != RGB:
            described["pixels"] = self.pixels.to_json()
        return described

    def __call__(self, image: Image.Image | Samples, generator: torch.Generator | None = None) -> TransformedImage:
        """Transform one image to (C, height, width).

        Args:
            image: What `decode` returns: an image of mode RGB, or `Samples` of other images.
            generator: CPU generator; required if the transform is random, and its only source of randomness.

        Raises:
            BadImage: The image is too small without resizing, or so thin that resizing would make it huge.
        """
        assert (image.pixels if isinstance(image, Samples) else RGB) == self.pixels, image
        assert generator is not None or not self.is_random, "a random transform needs a generator"
        original_width, original_height = image.size
        if self.crop == "adm":
            image = _halved(image, self.height)
        width, height = self._resized_size(*image.size)
        if width < self.width or height < self.height:
            raise BadImage(f"{width}x{height} is smaller than the crop {self.width}x{self.height}")
        # 1x60000 pixels at a shorter side of 256 would be four gigapixels.
        if width * height > max(MAX_PIXELS, self.decode.max_pixels):
            raise BadImage(f"{original_width}x{original_height} is too thin to be resized to {width}x{height}")
        if (width, height) != image.size:
            image = image.resize((width, height), _FILTER)
        left, top = width - self.width, height - self.height
        if self.crop == "random":
            left, top = (int(torch.randint(room + 1, (), generator=generator)) for room in (left, top))
        else:
            left, top = left // 2, top // 2
        flipped = self.flip and bool(torch.rand((), generator=generator) < 0.5)
        image = image.crop((left, top, left + self.width, top + self.height))
        if flipped:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        scale_x, scale_y = original_width / width, original_height / height
        return TransformedImage(
            pixel_values=_pixel_values(image),
            original_size=(original_height, original_width),
            crop_ltrb=(
                round(left * scale_x),
                round(top * scale_y),
                round((left + self.width) * scale_x),
                round((top + self.height) * scale_y),
            ),
            flipped=flipped,
        )

    def window(self, size: tuple[int, int]) -> Window:
        """Return the visible part of an image of (width, height) whose crop is central: `crop_ltrb`, not rounded."""
        width, height = size
        while self.crop == "adm" and min(width, height) >= 2 * self.height:
            width, height = width // 2, height // 2
        width, height = self._resized_size(width, height)
        left, top = (width - self.width) // 2, (height - self.height) // 2
        scale_x, scale_y = size[0] / width, size[1] / height
        return Window(left * scale_x, top * scale_y, (left + self.width) * scale_x, (top + self.height) * scale_y)

    def _resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) after resizing."""
        if self.crop == "adm":
            scale = self.height / min(width, height)  # multiplied in this order, to match the published roundings
            return round(width * scale), round(height * scale)
        if self.resize == "none":
            return width, height
        if self.resize is None:
            scale = max(self.width / width, self.height / height)
            return max(self.width, round(width * scale)), max(self.height, round(height * scale))
        shorter = min(width, height)
        assert isinstance(self.resize, int)
        return round(width * self.resize / shorter), round(height * self.resize / shorter)


def _pixel_values(image: Image.Image | Samples) -> Tensor:
    """Return (C, H, W) float32; BadImage if all samples are missing."""
    if isinstance(image, Samples):
        if image.present is not None and not image.present.any():
            raise BadImage("all of its samples are missing")
        return image.pixel_values()
    return from_levels(torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous())


def _halved(image: Image.Image | Samples, size: int) -> Image.Image | Samples:
    """Apply ADM's first step: halve the image, rounded down, while its shorter side stays at least `size`."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return image


def described_options(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of an `ImageTransform` without its size, from the result of `describe` in any version.

    Raises:
        KeyError: The description is not one of a transform.
    """
    return {
        "resize": described["resize"],
        "crop": described["crop"],
        "flip": described["flip"],
        "background": tuple(described["background"]),
        "colour_profiles": described.get("colour_profiles", "ignore"),
        "max_pixels": described.get("max_pixels", MAX_PIXELS),
        "pixels": PixelSpec.from_json(described.get("pixels", "rgb")),
    }
