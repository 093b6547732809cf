"""ICC profiles built from numbers, for files that declare their colours without a profile."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

D65 = (0.3127, 0.3290)
"""Chromaticity (x, y) of sRGB's white."""
SRGB_PRIMARIES = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
"""Chromaticities of sRGB's red, green and blue."""
ADOBE_RGB_PRIMARIES = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
ADOBE_RGB_GAMMA = 563 / 256

_D50 = np.array([0.9642, 1.0, 0.8249])  # the XYZ of the profile connection space's white, as ICC.1 rounds it
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
# IEC 61966-2-1 as ICC's parametric curve of type 3: exponent, a, b, c, d.
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)

Chromaticity = tuple[float, float]
Curve = float | tuple[float, float, float, float, float] | None
"""An exponent; exponent, a, b, c, d of ICC's parametric curve of type 3; or None for sRGB's curve."""


def rgb_profile(name: str, primaries: Sequence[Chromaticity], white: Chromaticity = D65, curve: Curve = None) -> bytes:
    """Return a display profile of three primaries and one curve.

    Args:
        name: ASCII text for the profile's description.
        primaries: The chromaticities of red, green and blue.
        white: The chromaticity of equal samples; it is mapped to the connection space's white by Bradford's method.
        curve: Curve from samples to light, see `Curve`.

    Raises:
        ValueError: The chromaticities do not span a colour space, or a number does not fit into a profile.
    """
    columns = _adapted(primaries, white)
    tags = {name: _xyz(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns.T, strict=True)}
    tone = _curve(curve)
    return _profile(name, b"RGB ", tags | {b"rTRC": tone, b"gTRC": tone, b"bTRC": tone})


def _adapted(primaries: Sequence[Chromaticity], white: Chromaticity) -> NDArray[np.float64]:
    """Return (3, 3): the XYZ of each primary under the connection space's white, as columns."""
    chromaticities = [*primaries, white]
    if any(not (0 <= x <= 1 and 0 < y <= 1 and x + y <= 1 + 1e-4) for x, y in chromaticities):
        raise ValueError("chromaticities outside of the diagram")
    directions = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in chromaticities]).T
    rgb, white_xyz = directions[:, :3], directions[:, 3]
    if abs(np.linalg.det(rgb)) < 1e-6:
        raise ValueError("primaries on one line")
    columns = rgb * np.linalg.solve(rgb, white_xyz)
    scale = (_BRADFORD @ _D50) / (_BRADFORD @ white_xyz)
    adaptation = np.linalg.solve(_BRADFORD, scale[:, None] * _BRADFORD)
    return np.asarray(adaptation @ columns)


def _profile(name: str, space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """Build a profile by ICC.1:2010 (version 4.3): header, tag table, tags."""
    tags = {b"desc": _text(name), b"cprt": _text("CC0"), b"wtpt": _xyz(_D50)} | tags
    offset = 128 + 4 + 12 * len(tags)
    table, content = struct.pack(">I", len(tags)), b""
    for signature, value in tags.items():
        table += signature + struct.pack(">II", offset + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    header = struct.pack(
        ">I4xI4s4s4s12x4s28x12s48x", offset + len(content), 0x04300000, b"mntr", space, b"XYZ ", b"acsp",
        _numbers(_D50),
    )  # fmt: skip
    return header + table + content


def _numbers(values: Sequence[float] | NDArray[np.float64]) -> bytes:
    """Encode numbers as s15Fixed16Numbers."""
    fixed = [round(float(value) * 65536) for value in values]
    if any(abs(value) > 0x7FFFFFFF for value in fixed):
        raise ValueError("a number that does not fit into a profile")
    return struct.pack(f">{len(fixed)}i", *fixed)


def _xyz(values: Sequence[float] | NDArray[np.float64]) -> bytes:
    return b"XYZ \0\0\0\0" + _numbers(values)


def _text(text: str) -> bytes:
    """Encode text as a multiLocalizedUnicode of one language."""
    encoded = text.encode("utf-16-be")
    return b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(encoded), 28) + encoded


def _curve(curve: Curve) -> bytes:
    curve = _SRGB_CURVE if curve is None else curve
    kind, parameters = (3, curve) if isinstance(curve, tuple) else (0, (curve,))
    return b"para\0\0\0\0" + struct.pack(">HH", kind, 0) + _numbers(parameters)
