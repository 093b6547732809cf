"""Conversion of samples to sRGB by the colour profile of their file.

Littlecms converts (through Pillow), relative to the white and with black point compensation, the defaults of Photoshop
and GIMP. A profile that moves no colour by more than two levels is treated as one of the many variants of sRGB, and the
samples stay unchanged.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageCms

from ldm_ae.images.cicp import CodePoints, UnsupportedError, cicp_profile
from ldm_ae.images.profiles import ADOBE_RGB_GAMMA, ADOBE_RGB_PRIMARIES, D65, SRGB_PRIMARIES, rgb_profile

NOT_APPLIED = "not applied: "
"""Prefix of the account of a profile that cannot be used."""
_SAME = 2  # levels; published variants of the sRGB profile differ by one, the nearest other spaces by six or more
_NAMED = 3  # profiles in a message
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # Pillow's mode of the samples that a profile is for
_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION


class _Unusable(Exception):  # noqa: N818 - the account of a file, not an error
    """A fault of the colours that a file declares."""


class _Conversion(NamedTuple):
    mode: str
    """Mode of the input samples."""
    transform: ImageCms.ImageCmsTransform | None
    """Transform of the samples; None leaves them unchanged."""
    account: str | None
    """Name of the profile, None for sRGB."""


def to_srgb(image: Image.Image, file: Image.Image) -> tuple[Image.Image, str | None]:
    """Convert samples to sRGB.

    Args:
        image: The samples, mode L, LA, RGB, RGBA, CMYK or LAB.
        file: The image as Pillow opened it, which declares the profile.

    Returns:
        The image, RGB or RGBA if it was converted, otherwise unchanged; and the account: None if it is sRGB or declares
        nothing, the name of its profile, or `NOT_APPLIED` and the reason.
    """
    if image.mode == "LAB":
        return _applied(_lab_transform(), image), "CIE L*a*b*"
    try:
        profile = _profile_of(file, grey=image.mode in ("L", "LA"))
        if not profile:
            return image, None
        conversion = _conversion(profile, {"LA": "L", "RGBA": "RGB"}.get(image.mode, image.mode))
    except _Unusable as error:
        return image, NOT_APPLIED + str(error)
    if conversion.transform is None:
        return image, conversion.account
    samples = image if image.mode == conversion.mode else image.convert(conversion.mode)
    converted = _applied(conversion.transform, samples)
    if image.mode in ("LA", "RGBA"):
        converted.putalpha(image.getchannel("A"))
    return converted, conversion.account


def _applied(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None, "only what is converted in place is not returned"
    return converted


def conversion_lines(counts: Mapping[str, int]) -> list[str]:
    """Report how many images were converted, and how many profiles were not applied; `counts` is images by account."""
    converted = {name: count for name, count in counts.items() if not name.startswith(NOT_APPLIED)}
    others = {name: count for name, count in counts.items() if name not in converted}
    lines = []
    if converted:
        lines.append(f"{sum(converted.values())} images converted to sRGB, from {_listed(converted)}")
    if others:
        lines.append(f"{sum(others.values())} images have a colour profile that was {_listed(others)}")
    return lines


def _listed(counts: Mapping[str, int]) -> str:
    frequent = sorted(counts, key=lambda name: -counts[name])[:_NAMED]
    more = f" and {len(counts) - _NAMED} more" if len(counts) > _NAMED else ""
    return ", ".join(f"{name} ({counts[name]})" for name in frequent) + more


@lru_cache(maxsize=1)
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@lru_cache(maxsize=1)
def _lab_transform() -> ImageCms.ImageCmsTransform:
    """Return the transform from CIE L*a*b* relative to D50, the convention of TIFF writers."""
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    return ImageCms.buildTransform(lab, _srgb(), "LAB", "RGB", _INTENT, _FLAGS)


@lru_cache(maxsize=32)  # a data set has few profiles; building a transform takes milliseconds
def _conversion(profile: bytes, mode: str) -> _Conversion:
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = opened.profile.xcolor_space.strip()
    except (OSError, TypeError, ValueError):
        raise _Unusable("the profile is damaged") from None
    source = _MODES.get(space, "")
    if source != mode and (source, mode) != ("RGB", "L"):
        raise _Unusable(f"a profile for {space} samples, the image has {_space(mode)}")
    try:
        transform = ImageCms.buildTransform(opened, _srgb(), source, "RGB", _INTENT, _FLAGS)
    except ImageCms.PyCMSError:
        raise _Unusable("the profile is damaged or is not one of a device") from None
    if source != "CMYK" and _moves(transform, source) <= _SAME:
        return _Conversion(source, None, None)
    return _Conversion(source, transform, _name(opened) or f"an unnamed {space} profile")


def _space(mode: str) -> str:
    return next((space for space, name in _MODES.items() if name == mode), mode)


def _moves(transform: ImageCms.ImageCmsTransform, mode: str) -> int:
    """Return the maximum levels by which the transform moves a sample, over greys and a grid of colours."""
    greys = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    colours = (
        greys if mode == "L" else np.concatenate([greys, np.array(np.meshgrid(steps, steps, steps)).reshape(3, -1).T])
    )
    probe = Image.fromarray(np.ascontiguousarray(colours[None])).convert(mode)
    moved = np.asarray(_applied(transform, probe)).astype(int)
    return int(np.abs(moved[0] - colours.astype(int)).max())


def _name(profile: ImageCms.ImageCmsProfile) -> str:
    """Return the profile's description as one short printable line."""
    try:
        text = ImageCms.getProfileDescription(profile)
    except ImageCms.PyCMSError:
        return ""
    text = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(text.split())[:80]


def _profile_of(file: Image.Image, *, grey: bool) -> bytes | None:
    """Return the profile of a file, or one built from its other colour data; the order of PNG's chunks is that of its
    specification: cICP, unless it is unusable and a profile is usable, iCCP, sRGB, gAMA and cHRM.
    """
    profile: bytes | None = file.info.get("icc_profile")
    points: CodePoints | None = file.info.get("cicp")
    try:
        found = None if points is None else cicp_profile(points, grey=grey)
    except UnsupportedError as error:
        if not profile:
            raise _Unusable(str(error)) from None
        found = None
    return found or profile or _stated(file, grey=grey)


def _stated(file: Image.Image, *, grey: bool) -> bytes | None:
    """Return a profile for a file without one, from PNG's gAMA and cHRM, or Adobe RGB in the EXIF data of cameras."""
    if file.format == "PNG":
        if "srgb" in file.info:
            return None
        return _png_profile(file.info.get("gamma"), file.info.get("chromaticity"), grey)
    return _adobe_rgb() if file.info.get("exif") and _exif_says_adobe_rgb(file) else None


@lru_cache(maxsize=32)
def _png_profile(gamma: float | None, chromaticity: tuple[float, ...] | None, grey: bool) -> bytes | None:
    """Build a profile; gAMA within 5 % of 1 / 2.2 means sRGB's curve, libpng's threshold and most writers' intent."""
    curve = None
    if gamma is not None and abs(gamma * 2.2 - 1) > 0.05:
        if not 0.05 < gamma < 20:
            raise _Unusable(f"gAMA is {gamma:g}")
        curve = 1 / gamma
    if curve is None and (chromaticity is None or grey):
        return None
    name = ("" if curve is None else f"gAMA {gamma:g}") + ("" if chromaticity is None or grey else " cHRM")
    try:
        # Also for grey samples: through a three-channel profile littlecms keeps the shadows of linear light.
        white, *primaries = [D65, *SRGB_PRIMARIES] if grey or chromaticity is None else _pairs(chromaticity)
        return rgb_profile(name.strip(), primaries, white, curve)
    except ValueError as error:
        raise _Unusable(f"cHRM has {error}") from None


def _pairs(numbers: tuple[float, ...]) -> list[tuple[float, float]]:
    return [(numbers[i], numbers[i + 1]) for i in range(0, len(numbers), 2)]


@lru_cache(maxsize=1)
def _adobe_rgb() -> bytes:
    return rgb_profile("Adobe RGB (EXIF)", ADOBE_RGB_PRIMARIES, D65, ADOBE_RGB_GAMMA)


def _exif_says_adobe_rgb(file: Image.Image) -> bool:
    """Return whether the file uses DCF's optional colour space: interoperability index R03, and not marked as sRGB."""
    try:
        exif = file.getexif()
        if ExifTags.IFD.Exif not in exif:
            return False
        details = exif.get_ifd(ExifTags.IFD.Exif)
        if details.get(ExifTags.Base.ColorSpace) == 1 or ExifTags.IFD.Interop not in details:
            return False
        return str(exif.get_ifd(ExifTags.IFD.Interop).get(1, "")).startswith("R03")
    except Exception:  # noqa: BLE001 - Pillow's EXIF reader raises arbitrary errors for damaged metadata
        return False
