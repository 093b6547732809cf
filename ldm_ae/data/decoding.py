"""Bytes to an 8-bit RGB image, with the pixels that the file means, or a reason why not.

Pillow's own `.convert("RGB")` saturates 16-bit grey, turns float TIFF black, ignores EXIF rotation, shows the hidden
colour under transparency, and expands a file of kilobytes into gigabytes with a mere warning. Here: rotation applied,
alpha composited, 16 bits scaled, the first frame of an animation, and sizes checked in the header.
"""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""What is opened, by content. The rest of Pillow's forty readers are rarely needed and rarely tested."""
MAX_PIXELS = 89_478_485
"""Pillow's own threshold: 256 MiB of RGB."""


class BadImage(Exception):  # noqa: N818 - a fact about the data that is recorded, seldom an error of the program
    """An image that cannot be used; the text is the reason, in a few words."""


def decode_image(
    data: bytes, *, background: tuple[int, int, int] = (255, 255, 255), max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decodes one image file.

    Peak memory is about 10 bytes a pixel, 20 for WebP, whose reader keeps several copies. Colour profiles are not
    applied: sRGB is assumed, as in the data sets that published models were trained on.

    Args:
        data: the whole file, of any of `FORMATS` whatever its name.
        background: RGB, 0..255, shown through transparent pixels.
        max_pixels: larger images are refused before their pixels are expanded; Pillow itself refuses those over
            twice `MAX_PIXELS`.

    Returns:
        Mode RGB, 8 bits, upright.

    Raises:
        BadImage: not an image of these formats, damaged, too large, or of samples that have no defined range.
    """
    if not data:
        raise BadImage("empty file")
    with warnings.catch_warnings():
        # What Pillow warns of (odd EXIF, sizes near its limit, trailing bytes) is either decided here or harmless.
        warnings.simplefilter("ignore")
        with _read(data, max_pixels) as image:
            return _upright(_flatten(image, background), image)


def _read(data: bytes, max_pixels: int) -> Image.Image:
    """The first frame as Pillow reads it, pixels included."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > max_pixels:
            raise BadImage(f"{width}x{height} is {width * height:,} pixels, more than {max_pixels:,}")
        image.load()
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage(f"not an image of a known format ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError as error:
        raise BadImage(f"far too many pixels: {error}") from None
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, struct.error and more for damaged files
        raise BadImage(f"damaged: {error or type(error).__name__}") from error
    return image


_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION, _BITS_PER_SAMPLE, _PHOTOMETRIC = 0x0112, 258, 262
_CONVERTIBLE = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
_BAND_ROWS = 256  # rows turned into NumPy arrays at a time, which bounds the memory of wide samples


def _upright(pixels: Image.Image, file: Image.Image) -> Image.Image:
    """`pixels` by the EXIF (or XMP) orientation of `file`. Pillow itself turns TIFF, and takes the tag away."""
    try:
        orientation = file.getexif().get(_ORIENTATION, 1)
    except (SyntaxError, ValueError, struct.error, OSError):
        orientation = 1  # unreadable metadata says nothing about the pixels; browsers show such photos as they are
    method = _TRANSPOSE.get(orientation)
    return pixels if method is None else pixels.transpose(method)


def _flatten(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Any mode to RGB."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N"):
        return _scaled_grey(image, background, _full_scale(image))
    if image.mode == "I":
        if image.format != "PNG":  # Pillow before 11.1 opens 16-bit grey PNG so
            raise BadImage("signed or 32-bit integer samples have no defined white")
        return _scaled_grey(image, background, 65535)
    if image.mode == "F":
        return _scaled_grey(image, background, 1.0)
    if image.mode == "La":  # premultiplied; Pillow converts it to this one mode only
        image = image.convert("LA")
    if image.mode not in _CONVERTIBLE:
        raise BadImage(f"colour mode {image.mode} is not supported")
    if image.has_transparency_data:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        flat = Image.new("RGB", rgba.size, background)
        flat.paste(rgba, mask=rgba.getchannel("A"))
        return flat
    return image if image.mode == "RGB" else image.convert("RGB")


def _full_scale(image: Image.Image) -> int:
    """The largest value of a 16-bit container: TIFF also keeps 12 bits in it."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    return (1 << int(bits)) - 1


def _scaled_grey(image: Image.Image, background: tuple[int, int, int], full_scale: float) -> Image.Image:
    """One channel of 16 bits or floats in [0, full_scale] to 8 bits, rounded to the nearest.

    Pillow reads these samples raw, so that WhiteIsZero (TIFF photometric 0) and the one transparent grey value that a
    PNG may name are left to us.
    """
    white_is_zero = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0
    transparent = image.info.get("transparency")
    width, height = image.size
    result = Image.new("RGB", image.size)
    for top in range(0, height, _BAND_ROWS):
        band = np.asarray(image.crop((0, top, width, min(top + _BAND_ROWS, height))))
        samples = band.astype(np.float32)
        if not np.isfinite(samples).all():
            raise BadImage("NaN or infinite samples")
        low, high = float(samples.min()), float(samples.max())
        if low < 0 or high > full_scale:
            raise BadImage(f"samples from {low:g} to {high:g}, outside of [0, {full_scale:g}], have no defined white")
        grey = np.rint(samples * (255.0 / full_scale)).astype(np.uint8)
        rgb = np.repeat((255 - grey if white_is_zero else grey)[:, :, None], 3, axis=2)
        if isinstance(transparent, int):
            rgb[band == transparent] = background
        result.paste(Image.fromarray(rgb), (0, top))
    return result
