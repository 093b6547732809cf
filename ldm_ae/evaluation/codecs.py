"""Image codecs applied to the same images, as the reference for rate and distortion.

The codecs are JPEG, WebP and AVIF as Pillow writes them: whole files with headers, at the libraries' quality numbers,
with chroma at half resolution. Pillow has AVIF since 11.3.
"""

from __future__ import annotations

import io
from typing import Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.images.in_memory import image_levels, levels_image
from ldm_ae.images.pixels import RGB, PixelSpec
from ldm_ae.images.stored import is_plain
from ldm_ae.images.uint8 import from_levels, to_uint8

Codec = Literal["jpeg", "webp", "avif"]
CODECS: tuple[Codec, ...] = ("jpeg", "webp", "avif")
QUALITIES: dict[Codec, tuple[int, int]] = {"jpeg": (1, 95), "webp": (0, 100), "avif": (0, 100)}
"""Lowest and highest quality; the libraries do not recommend JPEG's above 95, which only enlarge the file."""
_OPTIONS: dict[Codec, dict[str, bool]] = {"jpeg": {"optimize": True}, "webp": {}, "avif": {}}


class Coded(NamedTuple):
    """Images after coding."""

    reconstructions: Tensor
    """Decoded images, (B, 3, H, W) float32 in [-1, 1]."""
    bits: Tensor
    """Bits per image, (B,) float64: 8 times the bytes of its file."""


def missing_codec(codec: Codec) -> str | None:
    """Return why the installed Pillow cannot write a codec's files, in one line; None if it can."""
    Image.init()
    if codec.upper() in Image.SAVE:
        return None
    remedy = "install pillow 11.3 or newer" if codec == "avif" else "install a Pillow that was built with it"
    return f"{codec} is skipped: Pillow {Image.__version__} cannot write it; {remedy}"


def cannot_code(codec: Codec, pixels: PixelSpec) -> str | None:
    """Return why a codec is not measured on images of a specification, in one line; None if it is.

    Grey images are coded as RGB of three equal channels.
    """
    if is_plain(pixels):
        return None
    return f"{codec} is skipped: it codes RGB and grey images of 8 bits, but the images are {pixels}"


def as_rgb(pixel_values: Tensor) -> Tensor:
    """Return images (B, 3, H, W), or grey ones (B, 1, H, W), as RGB images.

    Raises:
        UserError: They have another number of channels.
    """
    if (channels := pixel_values.shape[1]) not in (1, RGB.channels):
        raise UserError(f"codecs code RGB and grey images, got images of {channels} channels")
    return pixel_values.expand(-1, RGB.channels, -1, -1)


def code_images(pixel_values: Tensor, codec: Codec, quality: int) -> Coded:
    """Encode each image as a file of its own, and decode it.

    Args:
        pixel_values: (B, 3, H, W), or grey (B, 1, H, W), in [-1, 1], rounded to 8 bits here.
        codec: Name of the codec.
        quality: A number in the codec's range of `QUALITIES`; JPEG has optimized Huffman tables.

    Raises:
        UserError: The quality is outside the range, Pillow cannot write the codec's files, or images have other
            channels.
    """
    files = _files(pixel_values, codec, quality)
    decoded = [image_levels(Image.open(file)) for file in files]
    return Coded(from_levels(torch.stack(decoded)), _bits(files))


def coded_bits(pixel_values: Tensor, codec: Codec, quality: int) -> Tensor:
    """Return the bits of `code_images` without decoding, (B,) float64; arguments and errors are the same."""
    return _bits(_files(pixel_values, codec, quality))


def _files(pixel_values: Tensor, codec: Codec, quality: int) -> list[io.BytesIO]:
    if (reason := missing_codec(codec)) is not None:
        raise UserError(reason)
    lowest, highest = QUALITIES[codec]
    if not lowest <= quality <= highest:
        raise UserError(f"the quality of {codec} is {quality}; it must be from {lowest} to {highest}")
    files = []
    for levels in to_uint8(as_rgb(pixel_values)).cpu():
        file = io.BytesIO()
        levels_image(levels).save(file, codec, quality=quality, **_OPTIONS[codec])
        files.append(file)
    return files


def _bits(files: list[io.BytesIO]) -> Tensor:
    return torch.tensor([8 * file.getbuffer().nbytes for file in files], dtype=torch.float64)
