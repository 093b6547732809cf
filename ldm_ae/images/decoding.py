"""Decoding of bytes to an 8-bit RGB image with the intended pixels, or a reason for failure.

Pillow's own `.convert("RGB")` saturates 16-bit grey, turns float TIFF black, ignores colour profiles and EXIF rotation,
shows the hidden colour under transparency, and expands a file of kilobytes into gigabytes with a mere warning. This
module applies the rotation, converts colours to sRGB, composites alpha, scales 16 bits, takes the first frame of an
animation, and checks sizes in the header.
"""

from __future__ import annotations

import importlib.util
import io
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from ldm_ae.images import png
from ldm_ae.images.colour import to_srgb
from ldm_ae.images.other_formats import optional_format, other_name

_AVIF = ("AVIF",) if importlib.util.find_spec("PIL.AvifImagePlugin") else ()  # since Pillow 11.3
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP", "JPEG2000", *_AVIF)
"""Formats that are opened, by content: JPEG includes MPO. Pillow's other readers, some forty in all, are rarely needed
and rarely tested. HEIC and JPEG XL are opened where their packages are installed."""
MAX_PIXELS = 89_478_485
"""Pillow's own threshold: 256 MiB of RGB."""
Colour = tuple[int, int, int]
ColourProfiles = Literal["convert", "ignore"]


class BadImage(Exception):  # noqa: N818 - a fact about the data that is recorded, rarely an error of the program
    """An image that cannot be used; the text is a short reason."""


class Decoded(NamedTuple):
    """The decoded content of a file."""

    image: Any
    """Image of mode RGB, 8 bits, upright; of other images, their `Samples`."""
    orientation: int
    """EXIF orientation, 1 to 8, that was undone; from 5 on the file has width and height swapped."""
    colour_profile: str | None
    """Name of the profile from which colours were converted to sRGB; "not applied: " and the reason if the file has an
    unusable one; None if it has none, or sRGB."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Decoder of files to images, with its settings.

    Peak memory is about 10 bytes a pixel, 20 for WebP, whose reader keeps several copies.

    Args:
        background: RGB, 0..255, shown through transparent pixels.
        colour_profiles: `convert` converts colours to sRGB by ICC profiles, PNG's gAMA and cHRM, and the EXIF mark of
            Adobe RGB; `ignore` treats all samples as sRGB, as in the data sets that published models were trained on.
            Samples of 16 bits are reduced to 8 before they are converted.
        max_pixels: Larger images are refused before their pixels are expanded. Values above `MAX_PIXELS` also raise
            Pillow's limit, for the whole process.
    """

    background: Colour = (255, 255, 255)
    colour_profiles: ColourProfiles = "convert"
    max_pixels: int = MAX_PIXELS

    def __call__(self, data: bytes) -> Decoded:
        """Decode one complete image file of any of `FORMATS`, whatever its name.

        Raises:
            BadImage: The file is not an image of these formats, is damaged or too large, or its samples have no defined
                range.
        """
        if not data:
            raise BadImage("empty file")
        with warnings.catch_warnings():
            # Pillow's warnings (odd EXIF, sizes near its limit, trailing bytes) are either handled here or harmless.
            warnings.simplefilter("ignore")
            file, orientation = read_image(data, self.max_pixels)
            with file:
                return self._decoded(file, orientation)

    def size_of(self, file: BinaryIO) -> tuple[int, int]:
        """Return (height, width) of the image that this decoder makes of a file, without decoding pixels if possible.

        Args:
            file: A complete image file, at its start.

        Raises:
            BadImage: As when decoding, except for errors that only the pixels show.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            size = size_in_header(file, self.max_pixels)
            if size is None:
                file.seek(0)
                if not (data := file.read()):
                    raise BadImage("empty file")
                image, orientation = read_image(data, self.max_pixels)
                with image:
                    size = _upright(image.size, 1 if image.format == "TIFF" else orientation)
        return size[1], size[0]

    def of_image(self, image: Image.Image) -> Decoded:
        """Convert an image that Pillow opened or a program made, by its current pixels; the image is not changed.

        The result equals that of the file, except for what Pillow does not keep of a PNG: its cICP chunk, and the bits
        of a transparent grey or colour below or above 8 bits.

        Raises:
            BadImage: The file is damaged, or the samples have no defined range.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                image.load()
            except Exception as error:
                raise BadImage(f"damaged: {error or type(error).__name__}") from error
            if 0 in image.size:
                raise BadImage(f"an image of {image.width}x{image.height} has no pixels")
            return self._decoded(image, _orientation(image))

    def _decoded(self, file: Image.Image, orientation: int) -> Decoded:
        samples, profile = eight_bits(file), None
        if self.colour_profiles == "convert":
            samples, profile = to_srgb(samples, file)
        elif samples.mode == "LAB":
            raise BadImage("colour mode LAB cannot be read as sRGB; set colour_profiles to convert")
        flat = _flatten(samples, self.background)
        method = None if file.format == "TIFF" else TRANSPOSE.get(orientation)  # Pillow itself turns TIFF
        return Decoded(flat if method is None else flat.transpose(method), orientation, profile)


def decode_image(
    data: bytes,
    *,
    background: Colour = (255, 255, 255),
    max_pixels: int = MAX_PIXELS,
    colour_profiles: ColourProfiles = "convert",
) -> Image.Image:
    """Decode one image file to mode RGB, 8 bits, upright; arguments and errors are those of `Decoding`."""
    return Decoding(background=background, max_pixels=max_pixels, colour_profiles=colour_profiles)(data).image


def read_image(data: bytes, max_pixels: int) -> tuple[Image.Image, int]:
    """Return the first frame as Pillow reads it, with its pixels loaded, and its EXIF orientation."""
    if max_pixels > MAX_PIXELS and Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)
    try:
        try:
            return _load(data, max_pixels)
        except ValueError as error:
            if not (data.startswith(png.SIGNATURE) and "MAX_TEXT" in str(error)):
                raise
            smaller, profile = png.without_large_chunks(data)
            image, orientation = _load(smaller, max_pixels)
            image.info["icc_profile"] = profile
            return image, orientation
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage(f"too many pixels: {error}; max_pixels sets the limit") from None
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, struct.error and more for damaged files
        raise BadImage(f"damaged: {error or type(error).__name__}") from error


def require_size(width: int, height: int, max_pixels: int) -> None:
    """Raise BadImage if an image has too many pixels."""
    if width * height > max_pixels:
        raise BadImage(
            f"{width}x{height} is {width * height:,} pixels, more than {max_pixels:,}; max_pixels sets the limit"
        )


def _load(data: bytes, max_pixels: int) -> tuple[Image.Image, int]:
    image = _open(data)
    require_size(*image.size, max_pixels)
    orientation = _orientation(image) if image.format == "TIFF" else 1  # loading removes the tag
    image.load()
    if image.format != "TIFF":  # for PNG, reading the tag loads the pixels
        orientation = _orientation(image)
    if image.format == "PNG" and (points := png.code_points(data)) is not None:
        image.info["cicp"] = points
    if image.format == "PNG" and isinstance(value := image.info.get("transparency"), int | tuple) and image.mode != "P":
        image.info["transparency"] = png.transparent_samples(data, value)
    return image, orientation


def size_in_header(file: BinaryIO, max_pixels: int) -> tuple[int, int] | None:
    """Return (width, height) of the upright image; None if the header is refused or does not suffice."""
    try:
        if png.has_metadata_after_pixels(file):
            return None
        file.seek(0)
        image = Image.open(file, formats=FORMATS)
        # Until the pixels are loaded, the size of TIFF depends on Pillow's version. PNG's own reader would load them.
        size = (image.tag_v2[_WIDTH], image.tag_v2[_HEIGHT]) if isinstance(image, TiffImageFile) else image.size
        orientation = _orientation(image, Image.Image.getexif)
    except Exception:  # noqa: BLE001 - the complete file is decoded next, with the reason if it is bad
        return None
    return _upright(size, orientation) if size[0] * size[1] <= max_pixels else None


def _upright(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Return the size after the rotation that an EXIF orientation requires."""
    return (size[1], size[0]) if orientation >= _FIRST_ON_ITS_SIDE else size


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        try:
            optional = optional_format(data)
        except ImportError as error:
            raise BadImage(str(error)) from None
        if optional is not None:
            return Image.open(io.BytesIO(data), formats=[optional])
        name = other_name(data)
        looks = "" if name is None else f"; it is {name}"
        raise BadImage(f"not an image of a known format ({', '.join(FORMATS)}){looks}") from None


TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FIRST_ON_ITS_SIDE = 5
"""The first orientation with width and height swapped."""
_ORIENTATION, _WIDTH, _HEIGHT, BITS_PER_SAMPLE, PHOTOMETRIC = 0x0112, 256, 257, 258, 262
_BAND_ROWS = 256  # rows turned into NumPy arrays at a time, which bounds the memory of wide samples
# Conversion of each of Pillow's modes before colours are converted. The first of two is for files with transparency.
_PLAIN = {
    "1": ("LA", "L"), "L": ("LA", "L"), "LA": ("LA", "LA"), "P": ("RGBA", "RGB"), "PA": ("RGBA", "RGBA"),
    "RGB": ("RGBA", "RGB"), "RGBA": ("RGBA", "RGBA"), "RGBa": ("RGBA", "RGBA"), "RGBX": ("RGB", "RGB"),
    "CMYK": ("CMYK", "CMYK"), "YCbCr": ("RGB", "RGB"), "LAB": ("LAB", "LAB"),
}  # fmt: skip


def _orientation(image: Image.Image, read: Callable[[Image.Image], Image.Exif] | None = None) -> int:
    """Return the EXIF (or XMP) orientation, 1 to 8; `read` replaces the image's own reader of EXIF data."""
    try:
        orientation = (image.getexif() if read is None else read(image)).get(_ORIENTATION, 1)
    except (SyntaxError, ValueError, struct.error, OSError):
        return 1  # unreadable metadata does not describe the pixels; browsers show such photos unrotated
    return orientation if orientation in TRANSPOSE else 1


def eight_bits(image: Image.Image) -> Image.Image:
    """Convert any mode to L, LA, RGB, RGBA, CMYK or LAB."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N"):
        return _scaled_grey(image, _full_scale(image))
    if image.mode == "I":
        if image.format != "PNG":  # Pillow before 11.1 opens 16-bit grey PNG in this mode
            raise BadImage("signed or 32-bit integer samples have no defined white")
        return _scaled_grey(image, 65535)
    if image.mode == "F":
        return _scaled_grey(image, 1.0)
    if image.mode == "La":  # premultiplied; Pillow converts it only to LA
        return image.convert("LA")
    if image.mode not in _PLAIN:
        raise BadImage(f"colour mode {image.mode} is not supported")
    with_alpha, without = _PLAIN[image.mode]
    mode = with_alpha if image.has_transparency_data else without
    return image if image.mode == mode else image.convert(mode)


def _flatten(image: Image.Image, background: Colour) -> Image.Image:
    """Convert L, LA, RGB, RGBA or CMYK to RGB."""
    if image.mode in ("LA", "RGBA"):
        flat = Image.new("RGB", image.size, background)
        flat.paste(image.convert("RGB"), mask=image.getchannel("A"))
        return flat
    return image if image.mode == "RGB" else image.convert("RGB")


def _full_scale(image: Image.Image) -> int:
    """Return the largest value of a 16-bit container: TIFF also stores 12 bits in it."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
    return (1 << int(bits)) - 1


def _scaled_grey(image: Image.Image, full_scale: float) -> Image.Image:
    """Convert one channel of 16 bits or floats in [0, full_scale] to 8 bits, rounded to the nearest.

    Pillow reads these samples raw, so that this function handles WhiteIsZero (TIFF photometric 0) and the one
    transparent grey value that a PNG may declare.
    """
    white_is_zero = getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0
    transparent = image.info.get("transparency")
    width, height = image.size
    result = Image.new("LA" if isinstance(transparent, int) else "L", image.size)
    for top in range(0, height, _BAND_ROWS):
        band = np.asarray(image.crop((0, top, width, min(top + _BAND_ROWS, height))))
        samples = band.astype(np.float32)
        if not np.isfinite(samples).all():
            raise BadImage("NaN or infinite samples")
        low, high = float(samples.min()), float(samples.max())
        if low < 0 or high > full_scale:
            raise BadImage(f"samples from {low:g} to {high:g}, outside of [0, {full_scale:g}], have no defined white")
        grey = np.rint(samples * (255.0 / full_scale)).astype(np.uint8)
        part = Image.fromarray(255 - grey if white_is_zero else grey)
        if isinstance(transparent, int):
            part.putalpha(Image.fromarray(np.where(band == transparent, 0, 255).astype(np.uint8)))
        result.paste(part, (0, top))
    return result
