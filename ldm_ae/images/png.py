"""Corrections of errors of Pillow's PNG reader, from the file itself."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from ldm_ae.images.cicp import CodePoints

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MOST_PROFILE = 2**24
"""Maximum bytes of an ICC profile; profiles with tables for printers take a few megabytes."""
_MOST_XMP = 2**20
_TEXT = (b"tEXt", b"zTXt", b"iTXt")


def transparent_samples(data: bytes, value: int | tuple[int, ...]) -> int | tuple[int, ...]:
    """Convert the content of a tRNS chunk to the scale of the samples as Pillow returns them.

    Pillow scales grey of 1, 2 and 4 bits to 8, takes the upper byte of colours of 16 bits, and leaves tRNS unchanged,
    except for grey of 1 bit in its later releases.
    Colours of 16 bits that have the same upper bytes as the transparent one become transparent with it.

    Args:
        data: A PNG file that Pillow has opened, without a palette.
        value: Its `info["transparency"]`: one grey or three samples.
    """
    depth, colour_type = data[24], data[25]
    if isinstance(value, tuple):
        return tuple(sample >> 8 if depth == 16 else sample & 255 for sample in value)
    if colour_type != 0 or depth not in (1, 2, 4, 8):
        return value
    return (value & ((1 << depth) - 1)) * 255 // ((1 << depth) - 1)


def code_points(data: bytes) -> CodePoints | None:
    """Return the content of a PNG file's cICP chunk, which precedes the pixels; None if it has none."""
    for kind, content, _ in _chunks(data):
        if kind == b"cICP" and len(content) == len(CodePoints._fields):
            return CodePoints(*content)
        if kind in (b"IDAT", b""):
            break
    return None


def has_metadata_after_pixels(file: BinaryIO) -> bool:
    """Return whether texts or EXIF data follow a PNG file's pixels, where Pillow reads them only with the pixels.

    Args:
        file: Any file, at its start; it is left at another position.
    """
    if file.read(len(SIGNATURE)) != SIGNATURE:
        return False
    after_pixels = False
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if after_pixels and kind in (b"eXIf", *_TEXT):
            return True
        after_pixels |= kind == b"IDAT"
        file.seek(length + 4, io.SEEK_CUR)
    return False


def without_large_chunks(data: bytes) -> tuple[bytes, bytes | None]:
    """Return a PNG file without its texts and its ICC profile, and the profile.

    Pillow refuses a file whose texts or profile are larger than a megabyte, whatever its pixels. XMP, which may hold
    the orientation, stays unless it is as large. The profile is None if it is absent, damaged, or larger than any real
    profile.
    """
    kept, profile = [SIGNATURE], None
    for kind, content, whole in _chunks(data):
        if kind == b"iCCP":
            profile = _inflated_profile(content)
        elif kind not in _TEXT or (content.startswith(b"XML:com.adobe.xmp\0") and len(content) <= _MOST_XMP):
            kept.append(whole)
    return b"".join(kept), profile


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield type, content and all bytes of each chunk; the remainder of a damaged file is one chunk of empty type."""
    start = len(SIGNATURE)
    while start < len(data):
        if start + 12 > len(data):
            yield b"", b"", data[start:]
            return
        (length,) = struct.unpack_from(">I", data, start)
        end = start + 12 + length
        yield data[start + 4 : start + 8], data[start + 8 : end - 4], data[start:end]
        start = end


def _inflated_profile(content: bytes) -> bytes | None:
    _, _, after_name = content.partition(b"\0")
    inflater = zlib.decompressobj()
    try:
        profile = inflater.decompress(after_name[1:], _MOST_PROFILE)
    except zlib.error:
        return None
    return None if inflater.unconsumed_tail else profile
