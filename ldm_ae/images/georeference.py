"""The georeference of TIFF files, adapted to a part of an image and to another size.

GeoTIFF (OGC 19-008r4) maps raster coordinates (i, j) to those of a map by a scale and tie points, by tie points alone,
or by a matrix. Cropping and resizing are a linear change of raster coordinates, so that the adapted tags map each place
exactly where it was. The coordinate system itself is copied.
"""

from __future__ import annotations

import importlib.util
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ldm_ae.core.errors import reason

_SCALE, _POINTS, _MATRIX, _KEYS, _KEY_NUMBERS, _KEY_TEXTS = 33550, 33922, 34264, 34735, 34736, 34737
_TYPES = {_SCALE: "d", _POINTS: "d", _MATRIX: "d", _KEYS: "H", _KEY_NUMBERS: "d", _KEY_TEXTS: "s"}
_RATIONAL_POLYNOMIALS, _ORIENTATION, _NODATA = 50844, 274, 42113
_RASTER_TYPE, _POINT = 1025, 2
_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

ExtraTag = tuple[int, str, int, Any, bool]
"""A tag as `tifffile.imwrite` takes it."""


class Window(NamedTuple):
    """A part of an image, in pixels from its upper left corner, which need not be whole."""

    left: float
    top: float
    right: float
    bottom: float


class Georeference(NamedTuple):
    """The georeference of a TIFF file."""

    tags: dict[int, Any]
    """Values of the tags of GeoTIFF by their codes."""
    size: tuple[int, int]
    """(width, height) of its image."""
    lost: str | None
    """Why the georeference cannot be kept; None if it can."""

    def moved(self, window: Window, size: tuple[int, int]) -> list[ExtraTag]:
        """Return the tags for a part of the image in a size (width, height)."""
        found = dict(self.tags)
        scale = (window.right - window.left) / size[0], (window.bottom - window.top) / size[1]
        # A pixel's center is at (0.5, 0.5), and at (0, 0) where raster coordinates are those of points.
        center = 0.5 if self._of_points() else 0.0
        start = window.left + center * scale[0] - center, window.top + center * scale[1] - center
        if _SCALE in found:
            found[_SCALE] = (found[_SCALE][0] * scale[0], found[_SCALE][1] * scale[1], *found[_SCALE][2:])
        if _POINTS in found:
            points = np.array(found[_POINTS], np.float64).reshape(-1, 6)
            points[:, :2] = (points[:, :2] - start) / scale
            found[_POINTS] = tuple(points.ravel().tolist())
        if _MATRIX in found:
            to_original = np.diag([*scale, 1.0, 1.0])
            to_original[:2, 3] = start
            found[_MATRIX] = tuple((np.array(found[_MATRIX]).reshape(4, 4) @ to_original).ravel().tolist())
        return [
            (code, _TYPES[code], 0 if isinstance(value, str) else len(value), value, True)
            for code, value in sorted(found.items())
        ]

    def _of_points(self) -> bool:
        """Return whether whole raster coordinates are the centers of pixels, not their corners."""
        keys = np.array(self.tags.get(_KEYS, ()), np.int64)
        keys = keys[: len(keys) // 4 * 4].reshape(-1, 4)[1:]
        return any(key == _RASTER_TYPE and place == 0 and value == _POINT for key, place, _, value in keys.tolist())


def read_georeference(file: BinaryIO) -> Georeference | None:
    """Return the georeference of a file; None if it is not a TIFF file, or one without a georeference.

    Args:
        file: A file at its start, of which the first directory is read.
    """
    start = file.read(4)
    file.seek(0)
    if start not in _MARKS or importlib.util.find_spec("tifffile") is None:
        return None
    import tifffile

    try:
        with tifffile.TiffFile(file, name="image.tif") as opened:  # a file that is a descriptor has no name
            page = opened.pages.first
            tags = {tag.code: tag.value for tag in page.tags}
            size = page.imagewidth, page.imagelength
    except Exception as error:  # noqa: BLE001 - tifffile raises many kinds for files that it does not read
        return Georeference({}, (0, 0), f"tifffile cannot read its tags ({reason(error)})")
    found = {code: tags[code] for code in _TYPES if code in tags}
    placed = _POINTS in found or _MATRIX in found
    if not placed and _RATIONAL_POLYNOMIALS not in tags:
        return None
    lost = None
    if not placed:
        lost = "rational polynomials are not supported"
    elif tags.get(_ORIENTATION, 1) != 1:
        lost = "the image is turned by its orientation"
    return Georeference(found, size, lost)


def missing_tag(missing: float) -> ExtraTag:
    """Return GDAL's tag of the value that marks missing data."""
    return (_NODATA, "s", 0, f"{missing:.17g}", True)
