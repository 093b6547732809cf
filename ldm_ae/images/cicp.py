"""PNG's cICP chunk: a file's colour space by code points of ITU-T H.273. It has priority over the ICC profile."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from ldm_ae.images.profiles import D65, SRGB_PRIMARIES, Chromaticity, Curve, rgb_profile

_C = (0.310, 0.316)
_BT709_CURVE = (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081)
# H.273, table 2: white, then red, green and blue.
_PRIMARIES: dict[int, tuple[Chromaticity, tuple[Chromaticity, Chromaticity, Chromaticity]]] = {
    1: (D65, SRGB_PRIMARIES),
    4: (_C, ((0.67, 0.33), (0.21, 0.71), (0.14, 0.08))),
    5: (D65, ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06))),
    6: (D65, ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070))),
    7: (D65, ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070))),
    8: (_C, ((0.681, 0.319), (0.243, 0.692), (0.145, 0.049))),
    9: (D65, ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046))),
    11: ((0.314, 0.351), ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))),
    12: (D65, ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))),
    22: (D65, ((0.630, 0.340), (0.295, 0.605), (0.155, 0.077))),
}
# Table 3: 1, 6, 14 and 15 are one curve.
_CURVES: dict[int, Curve] = {
    1: _BT709_CURVE, 4: 2.2, 5: 2.8, 6: _BT709_CURVE, 8: 1.0, 13: None, 14: _BT709_CURVE, 15: _BT709_CURVE,
}  # fmt: skip
_HDR = {16: "PQ", 18: "HLG"}
_NAMES = {1: "BT.709", 9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}
_UNSPECIFIED = 2


class CodePoints(NamedTuple):
    """The content of the chunk."""

    primaries: int
    transfer: int
    matrix: int
    full_range: int


class UnsupportedError(ValueError):
    """Code points that cannot be converted; the text names them."""


@lru_cache(maxsize=32)
def cicp_profile(points: CodePoints, *, grey: bool) -> bytes | None:
    """Return an ICC profile of the colour space, or None where the chunk specifies none.

    Raises:
        UnsupportedError: The chunk specifies HDR, samples that are not full-range RGB, or code points that are reserved
            or have no ICC profile.
    """
    if _UNSPECIFIED in (points.primaries, points.transfer):
        return None
    if points.transfer in _HDR:
        raise UnsupportedError(f"cICP declares HDR, {_HDR[points.transfer]} (transfer {points.transfer})")
    if points.matrix or points.full_range != 1:
        raise UnsupportedError("cICP declares samples that are not full-range RGB")
    if points.primaries not in _PRIMARIES or points.transfer not in _CURVES:
        raise UnsupportedError(f"cICP has primaries {points.primaries} and transfer {points.transfer}")
    white, primaries = _PRIMARIES[points.primaries]
    curve = _CURVES[points.transfer]
    space = _NAMES.get(points.primaries, f"primaries {points.primaries}")
    name = f"cICP {space}" + ("" if curve is None else f", transfer {points.transfer}")
    if grey:  # grey samples have no primaries
        white, primaries = D65, SRGB_PRIMARIES
    return rgb_profile(name, primaries, white, curve)
