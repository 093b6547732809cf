"""Image formats that Pillow does not open by itself: opened by an optional package, or named in the reason."""

from __future__ import annotations

import importlib
from typing import NamedTuple

from PIL import Image


class _Optional(NamedTuple):
    name: str
    """Name in messages."""
    format: str
    """Pillow's name of the format once the package is loaded."""
    module: str
    extra: str
    """The extra of ldm_ae that installs it."""


_HEIC = _Optional("HEIC", "HEIF", "pillow_heif", "heic")
_JPEG_XL = _Optional("JPEG XL", "JXL", "pillow_jxl", "jxl")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
_STARTS = {
    b"8BPS": "a Photoshop file (PSD)",
    b"%PDF": "a PDF",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"SIMPLE  =": "FITS",
    b"DDS ": "a DirectDraw surface (DDS)",
    b"qoif": "QOI",
    b"II\xbc": "JPEG XR",
    b"FUJIFILMCCD-RAW": "a camera's raw file (RAF)",
    b"IIRO": "a camera's raw file (ORF)",
    b"IIU\0": "a camera's raw file (RW2)",
    b"gimp xcf": "a GIMP file (XCF)",
    b"\0\0\1\0": "an icon (ICO)",
    b"P1": "PNM", b"P2": "PNM", b"P3": "PNM", b"P4": "PNM", b"P5": "PNM", b"P6": "PNM",
    b"<svg": "SVG",
    b"\x1aE\xdf\xa3": "a video (Matroska or WebM)",
    b"\x93NUMPY": "a NumPy array, which models of other images than RGB in 8 bits read",
    b"version https://git-lfs": "a Git LFS pointer instead of the file",
}  # fmt: skip


def optional_format(data: bytes) -> str | None:
    """Return Pillow's name of the format that an optional package opens, after loading the package.

    Raises:
        ImportError: The package is missing; the text describes how to install it.
    """
    kind = _optional_kind(data)
    if kind is None:
        return None
    try:
        module = importlib.import_module(kind.module)
    except ImportError as error:
        raise ImportError(f"{kind.name} needs a package: pip install 'ldm_ae[{kind.extra}]'") from error
    if kind.format not in Image.OPEN:  # pillow_jxl registers itself
        module.register_heif_opener()
    return kind.format


def _optional_kind(data: bytes) -> _Optional | None:
    if data.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")):
        return _JPEG_XL
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS and not _brands(data) & set(_AVIF_BRANDS):
        return _HEIC
    return None


def _brands(data: bytes) -> set[bytes]:
    """Return the compatible brands of an ISO base media file."""
    end = min(int.from_bytes(data[:4], "big"), 256)
    return {data[start : start + 4] for start in range(16, end - 3, 4)}


def other_name(data: bytes) -> str | None:
    """Return the name of an unsupported file's format, as far as its first bytes show it."""
    for start, name in _STARTS.items():
        if data.startswith(start):
            return name
    if data[128:132] == b"DICM":
        return "DICOM, which models of other images than RGB in 8 bits read"
    if data[4:8] == b"ftyp":
        avif = data[8:12] in _AVIF_BRANDS or _brands(data) & set(_AVIF_BRANDS)
        return "AVIF, which this Pillow cannot read" if avif else "a video (MP4 or QuickTime)"
    if b"<svg" in data[:1000]:
        return "SVG"
    return "a web page" if data[:200].lstrip().lower().startswith((b"<!doctype html", b"<html")) else None
