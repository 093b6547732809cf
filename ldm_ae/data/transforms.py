"""A decoded image to `pixel_values` of one size, and the account of what was done to it."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm_ae.data.decoding import MAX_PIXELS, BadImage
from ldm_ae.errors import UserError

# Pillow widens the bicubic kernel with the scale factor, which is what antialiasing means; torch's and OpenCV's
# default resizing do not. Bicubic is what LDM's and ADM's data pipelines end with and what clean-fid (arXiv
# 2104.11222) measures on; Lanczos is sharper by ringing at edges, which an autoencoder would learn to reproduce.
_FILTER = Image.Resampling.BICUBIC


class TransformedImage(NamedTuple):
    """What a transform made of one image."""

    pixel_values: Tensor
    """(3, H, W) float32 RGB, exactly uint8 / 127.5 - 1."""
    original_size: tuple[int, int]
    """(height, width) before resizing, after the EXIF rotation."""
    crop_ltrb: tuple[int, int, int, int]
    """Left, top, right, bottom of what is seen, in pixels of the original, rounded."""
    flipped: bool
    """Mirrored left to right, after cropping."""


class ImageTransform:
    """Resize, crop, flip: any RGB image to one size.

    Args:
        size: of the result, one number for a square or (height, width), in pixels.
        resize: length to which the shorter side is scaled before the crop, aspect kept. None: scaled until the image
            just covers `size`. "none": not scaled; an image smaller than `size` is then a bad image.
        crop: "center", or "random" (uniform over all positions).
        flip: mirror every second image, at random.
        background: RGB, 0..255, shown through transparent pixels when the loader decodes.

    Raises:
        UserError: sizes that are not positive, or `resize` too small for the crop.
    """

    def __init__(
        self,
        *,
        size: int | tuple[int, int],
        resize: int | Literal["none"] | None = None,
        crop: Literal["center", "random"] = "center",
        flip: bool = False,
        background: tuple[int, int, int] = (255, 255, 255),
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
        if crop not in ("center", "random"):
            raise UserError(f'crop is "{crop}"; it must be "center" or "random"')
        if len(background) != 3 or not all(0 <= value <= 255 for value in background):
            raise UserError(f"background {list(background)} is not three numbers from 0 to 255")
        self.height, self.width = height, width
        self.resize = resize
        self.crop = crop
        self.flip = flip
        self.background = (background[0], background[1], background[2])

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of the results."""
        return [(self.height, self.width)]

    @property
    def is_random(self) -> bool:
        """Whether two calls on one image can differ."""
        return self.flip or self.crop == "random"

    def describe(self) -> dict[str, object]:
        """Everything that changes the pixels, as JSON values. `version` counts changes of the code itself."""
        return {
            "version": 1,
            "size": [self.height, self.width],
            "resize": self.resize,
            "filter": "bicubic-antialiased",
            "crop": self.crop,
            "flip": self.flip,
            "background": list(self.background),
        }

    def __call__(self, image: Image.Image, generator: torch.Generator | None = None) -> TransformedImage:
        """One RGB image to (3, height, width).

        Args:
            image: mode RGB.
            generator: CPU; needed if the transform is random, and its only source of randomness.

        Raises:
            BadImage: too small without resizing, or so thin that resizing would make it huge.
        """
        assert image.mode == "RGB", image.mode
        assert generator is not None or not self.is_random, "a random transform needs a generator"
        original_width, original_height = image.size
        width, height = self._resized_size(original_width, original_height)
        if width < self.width or height < self.height:
            raise BadImage(f"{width}x{height} is smaller than the crop {self.width}x{self.height}")
        if width * height > MAX_PIXELS:  # 1x60000 pixels at a shorter side of 256 would be four gigapixels
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
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        scale_x, scale_y = original_width / width, original_height / height
        return TransformedImage(
            pixel_values=pixels.to(torch.float32).div_(127.5).sub_(1.0),
            original_size=(original_height, original_width),
            crop_ltrb=(
                round(left * scale_x),
                round(top * scale_y),
                round((left + self.width) * scale_x),
                round((top + self.height) * scale_y),
            ),
            flipped=flipped,
        )

    def _resized_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) after resizing."""
        if self.resize == "none":
            return width, height
        if self.resize is None:
            scale = max(self.width / width, self.height / height)
            return max(self.width, round(width * scale)), max(self.height, round(height * scale))
        shorter = min(width, height)
        assert isinstance(self.resize, int)
        return round(width * self.resize / shorter), round(height * self.resize / shorter)
