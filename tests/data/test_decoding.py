"""Every odd image of RELIABILITY row 7: the pixels that it means, or the reason why it is refused."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from ldm_ae.data import BadImage, decode_image
from scripts.reliability.odd_pictures import (
    BACKGROUND,
    BAD,
    BLUE,
    GREEN,
    ODD,
    RED,
    STORED,
    corners,
    encoded,
    photo,
    png_header_only,
    turned,
)

WHITE = (255, 255, 255)


@pytest.mark.parametrize("name", ODD)
def test_odd_image_decodes_to_the_pixels_it_means(name: str) -> None:
    data, expected = ODD[name]
    image = decode_image(data, background=BACKGROUND)
    assert image.mode == "RGB"
    # One level: JPEG's transform at quality 100, and the rounding of alpha; everything else is exact.
    lossy = "JPEG" in name or "half" in name or "hidden" in name
    np.testing.assert_allclose(np.asarray(image).astype(int), expected.astype(int), atol=1 if lossy else 0)


@pytest.mark.parametrize("name", BAD)
def test_bad_image_is_refused_with_its_reason(name: str) -> None:
    data, reason = BAD[name]
    with pytest.raises(BadImage, match=reason) as caught:
        decode_image(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("JPEG", {"quality": 100, "subsampling": 0}),
    ],
)
def test_exif_orientation_is_applied_once(orientation: int, image_format: str, options: dict[str, object]) -> None:
    upright = corners().resize((64, 32), Image.Resampling.NEAREST)  # blocks of 16, which JPEG keeps
    decoded = decode_image(turned(upright, orientation, image_format, **options))
    assert decoded.size == (64, 32)
    found = [decoded.getpixel(place) for place in ((0, 0), (63, 0), (0, 31), (63, 31))]
    np.testing.assert_allclose(found, [RED, GREEN, BLUE, WHITE], atol=3 if image_format == "JPEG" else 0)


def test_16_bit_grey_is_rotated_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    data = encoded(Image.fromarray(np.array([[257 * 5, 257 * 6]], np.uint16)), "PNG", exif=exif)
    assert np.asarray(decode_image(data))[..., 0].tolist() == [[6, 5]]


def test_16_bit_grey_is_rounded_to_the_nearest() -> None:
    values = np.array([[0, 128, 129, 385, 386, 65407, 65535]], np.uint16)  # 257 a level, so 128 is below half a level
    decoded = decode_image(encoded(Image.fromarray(values), "PNG"))
    assert np.asarray(decoded)[0, :, 0].tolist() == [0, 0, 1, 1, 2, 255, 255]


def test_tall_16_bit_image_is_whole() -> None:
    # Wide samples are scaled some hundred rows at a time; the joints must not show.
    values = np.random.default_rng(0).integers(0, 256, (1000, 3), dtype=np.uint16)
    decoded = decode_image(encoded(Image.fromarray(values * 257), "PNG"))
    assert np.array_equal(np.asarray(decoded)[..., 0], values)


def test_background_is_white_unless_said() -> None:
    assert decode_image(encoded(Image.new("RGBA", (1, 1), (9, 9, 9, 0)), "PNG")).getpixel((0, 0)) == WHITE


def test_unreadable_exif_does_not_cost_the_picture() -> None:
    data = encoded(corners(), "PNG", exif=b"Exif\x00\x00not a directory")
    assert np.array_equal(np.asarray(decode_image(data)), np.asarray(corners()))


def test_limit_on_pixels_is_the_callers() -> None:
    data = encoded(photo((60, 40)), "PNG")
    assert decode_image(data, max_pixels=2400).size == (60, 40)
    with pytest.raises(BadImage, match="60x40 is 2,400 pixels, more than 2,399"):
        decode_image(data, max_pixels=2399)


@pytest.mark.parametrize("name", [*ODD, *BAD])
def test_no_warning_leaks(name: str) -> None:
    data = (ODD.get(name) or BAD[name])[0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with contextlib.suppress(BadImage):
            decode_image(data)
    assert caught == []


def test_bombs_cost_no_memory() -> None:
    """In a process of its own, whose peak is its own."""
    program = (
        "import resource, sys; from ldm_ae.data.decoding import BadImage, decode_image\n"
        "data = sys.stdin.buffer.read()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: decode_image(data)\n"
        "except BadImage: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], input=png_header_only(13000, 13000), capture_output=True, check=True
    )
    assert int(ran.stdout) < 20_000, "kB; the pixels would be 500 MB"


def test_damage_anywhere_is_a_reason_and_never_a_crash() -> None:
    """2,000 mutations with a fixed seed: the reader of any format meets only BadImage or gives an image."""
    rng = np.random.default_rng(7)
    files = [data for data, _ in ODD.values()] + [
        encoded(photo(), kind) for kind in ("JPEG", "PNG", "GIF", "TIFF", "BMP")
    ]
    refused = 0
    for _ in range(2000):
        data = bytearray(files[rng.integers(len(files))])
        for _ in range(rng.integers(1, 6)):
            data[rng.integers(min(len(data), 120))] = rng.integers(256)
        try:
            assert decode_image(bytes(data), max_pixels=10**6).mode == "RGB"
        except BadImage:
            refused += 1
    assert 500 < refused < 2000
