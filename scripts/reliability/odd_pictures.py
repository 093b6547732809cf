"""Image files that a naive loader gets wrong, or that crash it, each with what it means or why it is refused.

RELIABILITY row 7: `odd` for right pixels, `BAD` for a reason. Both are built in milliseconds and need no files.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)
BACKGROUND = (10, 20, 30)
"""The colour on which the expected values below are composited."""


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    """The file that Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def corners() -> Image.Image:
    """4 wide, 2 high, all pixels grey but the corners: red, green / blue, white."""
    image = Image.new("RGB", (4, 2), GREY)
    for place, colour in {(0, 0): RED, (3, 0): GREEN, (0, 1): BLUE, (3, 1): (255, 255, 255)}.items():
        image.putpixel(place, colour)
    return image


def photo(size: tuple[int, int] = (60, 40)) -> Image.Image:
    """Noise, so that no encoder can shorten it."""
    width, height = size
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def chunk(kind: bytes, content: bytes) -> bytes:
    """One PNG chunk."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header_only(width: int, height: int) -> bytes:
    """A PNG that claims to be this large and holds nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def png_16_bit_rgb(colour: tuple[int, int, int]) -> bytes:
    """2x2 of one colour, 16 bits a channel, which Pillow cannot write."""
    rows = (b"\x00" + struct.pack(">HHH", *colour) * 2) * 2
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def png_grey_16_one_transparent() -> bytes:
    """2x1, 16-bit grey: 257 * 7, which the file says is transparent, and 257 * 9."""
    header = struct.pack(">IIBBBBB", 2, 1, 16, 0, 0, 0, 0)
    row = zlib.compress(b"\x00" + struct.pack(">HH", 257 * 7, 257 * 9))
    content = chunk(b"IHDR", header) + chunk(b"tRNS", struct.pack(">H", 257 * 7)) + chunk(b"IDAT", row)
    return b"\x89PNG\r\n\x1a\n" + content + chunk(b"IEND", b"")


def tiff_grey(samples: bytes, bits: int, width: int, *, photometric: int = 1) -> bytes:
    """One row of grey samples, little-endian, with the bits and the meaning of zero that Pillow's writer cannot set."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 1, 279: len(samples)}
    samples = samples + b"\x00" * (len(samples) % 2)
    directory = struct.pack("<H", len(tags)) + b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()
    )
    return b"II*\x00" + struct.pack("<I", 8 + len(samples)) + samples + directory + struct.pack("<I", 0)


def _grey_ramp(scale: float, dtype: type) -> Image.Image:
    return Image.fromarray((np.arange(256).reshape(16, 16) * scale).astype(dtype))


def _palette(transparent: int | bytes | None) -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1)
    return encoded(image, "PNG", **({} if transparent is None else {"transparency": transparent}))


def _animated(image_format: str, **options: object) -> bytes:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    return encoded(frames[0], image_format, save_all=True, append_images=frames[1:], duration=50, **options)


def _two_pages() -> bytes:
    pages = [Image.new("RGB", (3, 3), colour) for colour in (GREEN, RED)]
    return encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])


_TWO_BITS = Image.fromarray(np.array([[True, False]]))
RAMP = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16)[:, :, None], 3, axis=2)


def _row(*colours: tuple[int, ...]) -> np.ndarray:
    return np.array([colours], dtype=np.uint8)


def _full(height: int, width: int, colour: tuple[int, ...]) -> np.ndarray:
    return np.full((height, width, 3), colour, dtype=np.uint8)


def odd(background: tuple[int, int, int]) -> dict[str, tuple[bytes, np.ndarray]]:
    """Name -> (file, expected (H, W, 3) uint8 on `background`)."""
    half_red = tuple(
        round(255 * 128 / 255 * part + back * 127 / 255) for part, back in zip((1, 0, 0), background, strict=True)
    )
    return {
        "16-bit grey PNG": (encoded(_grey_ramp(257, np.uint16), "PNG"), RAMP),
        "16-bit grey TIFF": (encoded(_grey_ramp(257, np.uint16), "TIFF"), RAMP),
        "16-bit grey TIFF, white is zero": (
            tiff_grey(struct.pack("<HH", 0, 65535), 16, 2, photometric=0),
            _row((255,) * 3, (0,) * 3),
        ),
        "12-bit grey TIFF": (tiff_grey(bytes([0x00, 0x0F, 0xFF]), 12, 2), _row((0,) * 3, (255,) * 3)),
        "16-bit grey PNG, one grey transparent": (png_grey_16_one_transparent(), _row(background, (9,) * 3)),
        "16-bit RGB PNG": (png_16_bit_rgb((257 * 200, 0, 257 * 7)), _full(2, 2, (200, 0, 7))),
        "float TIFF in [0, 1]": (encoded(_grey_ramp(1 / 255, np.float32), "TIFF"), RAMP),
        "1-bit PNG": (encoded(_TWO_BITS, "PNG"), _row((255,) * 3, (0,) * 3)),
        "1-bit TIFF": (encoded(_TWO_BITS, "TIFF", compression="group4"), _row((255,) * 3, (0,) * 3)),
        "grey PNG": (encoded(_grey_ramp(1, np.uint8), "PNG"), RAMP),
        "CMYK JPEG, inverted as Adobe writes it": (
            encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=100), _full(8, 8, (0, 255, 255)),
        ),
        "CMYK TIFF": (encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"), _full(8, 8, RED)),
        "palette": (_palette(None), _row(RED, GREEN)),
        "palette, one entry transparent": (_palette(1), _row(RED, background)),
        "palette, entries half transparent": (_palette(bytes([128, 255])), _row(half_red, GREEN)),
        "RGBA with colour hidden under transparency": (
            encoded(Image.fromarray(np.array([[[255, 0, 0, 0], [255, 0, 0, 128], [0, 255, 0, 255]]], np.uint8)), "PNG"),
            _row(background, half_red, GREEN),
        ),
        "LA": (
            encoded(Image.merge("LA", [Image.new("L", (1, 1), value) for value in (200, 0)]), "PNG"), _row(background),
        ),
        "RGB PNG, one colour transparent": (encoded(corners(), "PNG", transparency=GREY), np.where(
            (np.asarray(corners()) == 128), np.array(background, np.uint8), np.asarray(corners()))),
        "transparent GIF": (encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 0)), "GIF"), _full(2, 2, background)),
        "animated GIF": (_animated("GIF"), _full(4, 4, RED)),
        "animated WebP": (_animated("WEBP", lossless=True), _full(4, 4, RED)),
        "animated PNG": (_animated("PNG"), _full(4, 4, RED)),
        "TIFF of two pages": (_two_pages(), _full(3, 3, GREEN)),
        "1x1": (encoded(Image.new("RGB", (1, 1), BLUE), "PNG"), _row(BLUE)),
        "BMP": (encoded(corners(), "BMP"), np.asarray(corners())),
        "PNG without its end": (encoded(corners(), "PNG")[:-12], np.asarray(corners())),
    }  # fmt: skip


ODD = odd(BACKGROUND)
"""Name -> (file, expected (H, W, 3) uint8 on `BACKGROUND`)."""

# Where the corners red, green / blue, white of the upright picture lie in a file of each EXIF orientation is what the
# EXIF standard says of row 0 and column 0; `STORED[o]` undoes orientation o.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def turned(upright: Image.Image, orientation: int, image_format: str, **options: object) -> bytes:
    """A file that shows `upright` by an EXIF orientation."""
    method = STORED[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(upright if method is None else upright.transpose(method), image_format, exif=exif, **options)


_JPEG, _PNG = encoded(photo(), "JPEG", quality=95), encoded(photo(), "PNG")

BAD: dict[str, tuple[bytes, str]] = {
    "no bytes": (b"", "empty file"),
    "text": (b"<html>404 not found</html>" * 20, "not an image of a known format.*a web page"),
    "zeros": (b"\x00" * 1000, "not an image of a known format"),
    "truncated JPEG": (_JPEG[: len(_JPEG) // 2], "truncated"),
    "JPEG without EOI": (_JPEG[:-2], "truncated"),
    "truncated PNG": (_PNG[: len(_PNG) // 2], "truncated"),
    "truncated GIF": (encoded(photo(), "GIF")[:1500], "truncated"),
    "truncated WebP": (encoded(photo(), "WEBP")[:1000], "damaged"),
    "truncated TIFF": (encoded(photo(), "TIFF")[:3000], "damaged|not an image"),
    "PNG with a flipped bit": (_PNG[:60] + bytes([_PNG[60] ^ 1]) + _PNG[61:], "damaged"),
    "bomb of 169 megapixels": (png_header_only(13000, 13000), "13000x13000 is 169,000,000 pixels"),
    "bomb of 196 megapixels": (png_header_only(14000, 14000), "196000000 pixels"),
    "float TIFF in [0, 255]": (
        encoded(Image.fromarray(np.full((4, 4), 200, np.float32)), "TIFF"),
        "200.*no defined white",
    ),
    "float TIFF with NaN": (encoded(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"), "NaN"),
    "32-bit integers": (encoded(Image.fromarray(np.full((4, 4), 70000, np.int32)), "TIFF"), "no defined white"),
    "PPM": (encoded(photo(), "PPM"), "not an image of a known format.*it is PNM"),
    "PSD": (b"8BPS\0\1" + bytes(100), "not an image of a known format.*a Photoshop file"),
    "SVG": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image of a known format.*SVG"),
    "video": (b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(100), "not an image of a known format.*a video"),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
}
"""Name -> (file, pattern of the reason)."""
