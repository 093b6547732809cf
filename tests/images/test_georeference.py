"""Georeferences: each place keeps its coordinates on the map after cropping and resizing."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ldm_ae.data import BucketTransform, ImageTransform, WholeTransform
from ldm_ae.images.georeference import read_georeference
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.images.writing import encode_image

tifffile = pytest.importorskip("tifffile")
FIVE = PixelSpec(channels=5, meaning="channels", bits=16)
SCALE, POINTS, MATRIX, KEYS, NODATA = 33550, 33922, 34264, 34735, 42113
TURNED = (8.0, 2.0, 0.0, 500_000.0, 2.0, -8.0, 0.0, 4_000_000.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
PLACED: dict[str, list[tuple[int, str, Any]]] = {
    "scale": [(SCALE, "d", (10.0, 20.0, 0.0)), (POINTS, "d", (3.0, 4.0, 0.0, 500_000.0, 4_000_000.0, 0.0))],
    "matrix": [(MATRIX, "d", TURNED)],
}
TRANSFORMS = {
    "whole": WholeTransform(None, multiple=8, pixels=FIVE),
    "whole, resized": WholeTransform(16, multiple=8, pixels=FIVE),
    "crop": ImageTransform(size=(16, 24), resize="none", pixels=FIVE),
    "resized crop": ImageTransform(size=16, resize=21, pixels=FIVE),
    "adm": ImageTransform(size=8, crop="adm", pixels=FIVE),
    "buckets": BucketTransform([(16, 32), (32, 16)], pixels=FIVE),
}
HEIGHT, WIDTH = 37, 61


def geotiff(placed: str, *, points: bool = False, **options: Any) -> bytes:
    keys = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 2 if points else 1, 3072, 0, 1, 32633)
    tags = [(code, kind, len(value), value, True) for code, kind, value in [*PLACED[placed], (KEYS, "H", keys)]]
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((5, HEIGHT, WIDTH), np.uint16), photometric="minisblack", extratags=tags,
                     planarconfig="separate", **options)  # fmt: skip
    return buffer.getvalue()


def on_the_map(data: bytes, places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coordinates of places (N, 2), counted in pixels from the upper left corner of the image."""
    page = tifffile.TiffFile(io.BytesIO(data)).pages.first
    tags = {tag.code: tag.value for tag in page.tags}
    raster = places - (0.5 if tags[KEYS][11] == 2 else 0.0)
    if MATRIX in tags:
        matrix = np.array(tags[MATRIX]).reshape(4, 4)
        return raster @ matrix[:2, :2].T + matrix[:2, 3]
    i, j, _, x, y, _ = tags[POINTS]
    return np.array([x, y]) + (raster - [i, j]) * np.array([tags[SCALE][0], -tags[SCALE][1]])


@pytest.mark.parametrize("points", [False, True])
@pytest.mark.parametrize("placed", PLACED)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_each_place_keeps_its_coordinates(name: str, placed: str, points: bool) -> None:
    data, transform = geotiff(placed, points=points), TRANSFORMS[name]
    image = transform(transform.decode(data).image)
    height, width = image.pixel_values.shape[-2:]
    found = read_georeference(io.BytesIO(data))
    window = transform.window(found.size)
    assert tuple(map(round, window)) == image.crop_ltrb
    written = encode_image(np.zeros((5, height, width), np.uint16), FIVE, "tif", found.moved(window, (width, height)))
    places = np.array([(0.0, 0.0), (width, height), (width / 3, height / 7)])
    scale = (window.right - window.left) / width, (window.bottom - window.top) / height
    before = on_the_map(data, places * scale + window[:2])
    assert np.allclose(on_the_map(written, places), before, rtol=0, atol=1e-6)  # a micrometre, of float64's rounding
    keys = read_georeference(io.BytesIO(written)).tags[KEYS]
    assert keys == found.tags[KEYS]


def test_file_without_resizing_or_cropping_keeps_its_tags() -> None:
    found = read_georeference(io.BytesIO(geotiff("scale")))
    transform = ImageTransform(size=(HEIGHT, WIDTH), pixels=FIVE)
    assert [tag[3] for tag in found.moved(transform.window(found.size), found.size)] == list(found.tags.values())


def test_files_without_a_georeference_and_those_that_cannot_keep_it() -> None:
    plain = encode_image(np.zeros((5, 8, 8), np.uint16), FIVE, "tif")
    assert read_georeference(io.BytesIO(plain)) is None
    assert read_georeference(io.BytesIO(b"\x89PNG....")) is None
    assert read_georeference(io.BytesIO(plain[:20])).lost.startswith("tifffile cannot read its tags (")
    for tag, why in (
        ((50844, "d", 92, (0.0,) * 92, True), "rational polynomials are not supported"),
        ((274, "H", 1, 6, True), "the image is turned by its orientation"),
    ):
        buffer = io.BytesIO()
        point = (POINTS, "d", 6, (0.0,) * 6, True)
        tags = [tag] if tag[0] == 50844 else [tag, point]
        tifffile.imwrite(buffer, np.zeros((8, 8), np.uint16), extratags=tags)
        buffer.seek(0)
        assert read_georeference(buffer).lost == why


def test_value_of_missing_data_is_stated() -> None:
    for missing, text in ((-9999.0, "-9999"), (float("nan"), "nan")):
        pixels = PixelSpec(channels=1, meaning="grey", bits=0, missing=missing)
        data = encode_image(np.zeros((1, 8, 8), np.float32), pixels, "tif")
        assert tifffile.TiffFile(io.BytesIO(data)).pages.first.tags[NODATA].value == text
