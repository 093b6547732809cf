"""Every odd image of RELIABILITY row 7: the pixels that it means, or the reason why it is refused."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile
from PIL.PngImagePlugin import PngInfo

from ldm_ae.data import BadImage, Decoding, decode_image
from ldm_ae.images.decoding import FORMATS
from scripts.reliability.odd_colours import COLOURS, coloured, meant, rgb_icc, tolerance
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
COLOURED = coloured(BACKGROUND)


@pytest.mark.parametrize("name", ODD)
def test_unusual_image_formats_decode_to_the_expected_pixels(name: str) -> None:
    data, expected = ODD[name]
    image = decode_image(data, background=BACKGROUND)
    assert image.mode == "RGB"
    # One level: JPEG's transform at quality 100, and the rounding of alpha; everything else is exact.
    lossy = "JPEG" in name or "half" in name or "hidden" in name
    np.testing.assert_allclose(np.asarray(image).astype(int), expected.astype(int), atol=1 if lossy else 0)


@pytest.mark.parametrize("name", COLOURED)
def test_colours_are_converted_to_srgb(name: str) -> None:
    data, expected = COLOURED[name]
    image = decode_image(data, background=BACKGROUND)
    np.testing.assert_allclose(np.asarray(image).astype(int), expected.astype(int), atol=tolerance(name))


@pytest.mark.parametrize(
    ("name", "account"),
    [
        ("profile, PNG of Display P3", "Display P3"),
        ("profile, grey of gamma 1.8", "grey gamma 1.8"),
        ("profile, CMYK TIFF", "inks"),
        ("profile, sRGB", None),
        ("profile that is damaged", "not applied: the profile is damaged"),
        ("profile of inks on RGB", "not applied: a profile for CMYK samples, the image has RGB"),
        ("PNG with gAMA and cHRM of ProPhoto", "gAMA 0.55556 cHRM"),
        ("PNG with gAMA and cHRM of sRGB", None),
        ("PNG with gAMA of 0", "not applied: gAMA is 0"),
        ("PNG with cHRM on a line", "not applied: cHRM has primaries on one line"),
        ("PNG with cICP of Display P3", "cICP Display P3"),
        ("PNG with cICP of BT.2020", "cICP BT.2020, transfer 14"),
        ("PNG with cICP of sRGB before a profile", None),
        ("PNG with cICP of Display P3 before a profile", "cICP Display P3"),
        ("grey PNG with cICP of linear light", "cICP BT.2020, transfer 8"),
        ("PNG with cICP of PQ", "not applied: cICP declares HDR, PQ (transfer 16)"),
        ("PNG with cICP of HLG and gAMA", "not applied: cICP declares HDR, HLG (transfer 18)"),
        ("PNG with cICP of PQ before a profile", "Display P3"),
        ("PNG with cICP of narrow range", "not applied: cICP declares samples that are not full-range RGB"),
        ("PNG with cICP of reserved numbers", "not applied: cICP has primaries 99 and transfer 13"),
        ("PNG with cICP that specifies nothing", "gAMA 1"),
        ("JPEG that Exif says is Adobe RGB", "Adobe RGB (EXIF)"),
        ("LAB TIFF", "CIE L*a*b*"),
        ("JPEG 2000", None),
    ],
)
def test_decoded_image_records_the_converted_profile(name: str, account: str | None) -> None:
    assert Decoding()(COLOURED[name][0]).colour_profile == account


@pytest.mark.parametrize("name", [name for name in COLOURED if "CMYK" not in name and "LAB" not in name])
def test_ignored_profiles_preserve_sample_values(name: str) -> None:
    """Data sets of published models hold what Pillow decodes without colour conversion."""
    data, _ = COLOURED[name]
    decoded = Decoding(background=BACKGROUND, colour_profiles="ignore")(data)
    assert decoded.colour_profile is None
    if name.startswith(("profile, PNG", "profile, TIFF", "profile, WebP", "PNG with gAMA", "PNG with cICP")):
        assert np.array_equal(np.asarray(decoded.image), COLOURS)


def test_lab_images_are_refused_when_profiles_are_ignored() -> None:
    with pytest.raises(BadImage, match="colour mode LAB cannot be read as sRGB; set colour_profiles to convert"):
        decode_image(COLOURED["LAB TIFF"][0], colour_profiles="ignore")


def test_srgb_profiles_preserve_every_level() -> None:
    """Through littlecms some of them would move by one."""
    levels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    by_littlecms = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (rgb_icc("sRGB"), by_littlecms):
        assert np.array_equal(
            np.asarray(decode_image(encoded(Image.fromarray(levels), "PNG", icc_profile=profile))), levels
        )


def test_colour_conversion_is_exact_within_one_level() -> None:
    ramps = np.zeros((3, 256, 3), np.uint8) + np.uint8(40)
    for channel in range(3):
        ramps[channel, :, channel] = np.arange(256)
    for name in ("Display P3", "Adobe RGB", "ProPhoto"):
        found = decode_image(encoded(Image.fromarray(ramps), "TIFF", icc_profile=rgb_icc(name)))
        np.testing.assert_allclose(np.asarray(found).astype(int), meant(ramps, name).astype(int), atol=1)


@pytest.mark.skipif("AVIF" not in FORMATS, reason="this Pillow has no AVIF")
@pytest.mark.parametrize("orientation", STORED)
def test_avif_orientation_is_applied_once(orientation: int) -> None:
    upright = corners().resize((64, 32), Image.Resampling.NEAREST)
    decoded = Decoding()(turned(upright, orientation, "AVIF", quality=100, subsampling="4:4:4"))
    assert decoded.orientation == orientation
    assert decoded.image.size == (64, 32)
    found = [decoded.image.getpixel(place) for place in ((0, 0), (63, 0), (0, 31), (63, 31))]
    np.testing.assert_allclose(found, [RED, GREEN, BLUE, WHITE], atol=3)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_applied_orientation_is_recorded(image_format: str) -> None:
    for orientation in STORED:
        assert Decoding()(turned(corners(), orientation, image_format)).orientation == orientation


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", r"HEIC needs a package: pip install 'ldm_ae\[heic\]'"),
        (b"\xff\x0a\x10\x20", r"JPEG XL needs a package: pip install 'ldm_ae\[jxl\]'"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", r"JPEG XL needs a package: pip install 'ldm_ae\[jxl\]'"),
    ],
)
def test_optional_formats_name_the_package_to_install(
    start: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    with pytest.raises(BadImage, match=reason):
        decode_image(start + bytes(100))


def test_heic_is_decoded_with_its_package() -> None:
    heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    heif.from_pillow(Image.new("RGB", (64, 64), RED)).save(buffer, quality=95)
    np.testing.assert_allclose(decode_image(buffer.getvalue()).getpixel((5, 5)), RED, atol=3)


def test_jpeg_xl_is_decoded_with_its_package() -> None:
    pytest.importorskip("pillow_jxl")
    assert decode_image(encoded(corners(), "JXL", lossless=True)).getpixel((0, 0)) == RED


def test_xmp_orientation_is_read_beside_large_text_chunks() -> None:
    """Such a file is read without its texts, but for XMP."""
    info = PngInfo()
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    info.add_itxt("XML:com.adobe.xmp", xmp)
    info.add_text("workflow", "x" * 3_000_000, zip=True)
    decoded = decode_image(encoded(corners(), "PNG", pnginfo=info))
    assert np.array_equal(np.asarray(decoded), np.asarray(corners())[::-1, ::-1])


def test_damaged_png_with_large_text_chunks_is_refused() -> None:
    info = PngInfo()
    info.add_text("workflow", "x" * 3_000_000, zip=True)
    data = encoded(photo(), "PNG", pnginfo=info)
    with pytest.raises(BadImage, match="damaged"):
        decode_image(data[:-3000])


@pytest.mark.parametrize("name", BAD)
def test_invalid_image_is_refused_with_its_reason(name: str) -> None:
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


def test_exif_orientation_is_applied_to_16_bit_grey() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    data = encoded(Image.fromarray(np.array([[257 * 5, 257 * 6]], np.uint16)), "PNG", exif=exif)
    assert np.asarray(decode_image(data))[..., 0].tolist() == [[6, 5]]


def test_16_bit_grey_is_rounded_to_the_nearest_level() -> None:
    values = np.array([[0, 128, 129, 385, 386, 65407, 65535]], np.uint16)  # 257 a level, so 128 is below half a level
    decoded = decode_image(encoded(Image.fromarray(values), "PNG"))
    assert np.asarray(decoded)[0, :, 0].tolist() == [0, 0, 1, 1, 2, 255, 255]


def test_tall_16_bit_image_is_decoded_completely() -> None:
    # Wide samples are scaled some hundred rows at a time; the joints must not show.
    values = np.random.default_rng(0).integers(0, 256, (1000, 3), dtype=np.uint16)
    decoded = decode_image(encoded(Image.fromarray(values * 257), "PNG"))
    assert np.array_equal(np.asarray(decoded)[..., 0], values)


def test_transparent_background_is_white_by_default() -> None:
    assert decode_image(encoded(Image.new("RGBA", (1, 1), (9, 9, 9, 0)), "PNG")).getpixel((0, 0)) == WHITE


def test_unreadable_exif_does_not_reject_the_image() -> None:
    data = encoded(corners(), "PNG", exif=b"Exif\x00\x00not a directory")
    assert np.array_equal(np.asarray(decode_image(data)), np.asarray(corners()))


def test_pixel_limit_is_configurable() -> None:
    data = encoded(photo((60, 40)), "PNG")
    assert decode_image(data, max_pixels=2400).size == (60, 40)
    with pytest.raises(BadImage, match="60x40 is 2,400 pixels, more than 2,399; max_pixels sets the limit"):
        decode_image(data, max_pixels=2399)


def test_higher_pixel_limit_overrides_pillows_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow refuses images over twice its limit."""
    monkeypatch.setattr("ldm_ae.images.decoding.MAX_PIXELS", 1000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    data = encoded(photo((60, 40)), "PNG")
    with pytest.raises(BadImage, match=r"2400 pixels.*; max_pixels sets the limit"):
        decode_image(data, max_pixels=1000)
    assert decode_image(data, max_pixels=2400).size == (60, 40)


@pytest.mark.parametrize("name", [*ODD, *COLOURED, *BAD])
def test_decoding_emits_no_warnings(name: str) -> None:
    data = (ODD | COLOURED | BAD)[name][0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with contextlib.suppress(BadImage):
            decode_image(data)
    assert caught == []


def test_decompression_bombs_are_refused_without_allocating() -> None:
    """It runs in a separate process to measure its peak memory."""
    program = (
        "import resource, sys; from ldm_ae.images.decoding import BadImage, decode_image\n"
        "data = sys.stdin.buffer.read()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: decode_image(data)\n"
        "except BadImage: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], input=png_header_only(13000, 13000), capture_output=True, check=True
    )
    assert int(ran.stdout) < 20_000, "kB; the pixels would be 500 MB"


def test_damaged_bytes_are_refused_with_a_reason_and_never_crash() -> None:
    """2,000 mutations with a fixed seed: the reader of any format meets only BadImage or gives an image."""
    rng = np.random.default_rng(7)
    small = [data for data, _ in COLOURED.values() if len(data) < 20_000]
    files = (
        [data for data, _ in ODD.values()]
        + small
        + [encoded(photo(), kind) for kind in ("JPEG", "PNG", "GIF", "TIFF", "BMP")]
    )
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


def _same_size(data: bytes) -> None:
    """The size that the header gives is that of the decoded image."""
    image = decode_image(data)
    assert Decoding().size_of(io.BytesIO(data)) == (image.height, image.width)


@pytest.mark.parametrize("name", [*ODD, *COLOURED])
def test_size_of_unusual_images_is_that_of_the_decoded_image(name: str) -> None:
    _same_size(ODD[name][0] if name in ODD else COLOURED[name][0])


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "JPEG", "WEBP", *(["AVIF"] if "AVIF" in FORMATS else [])])
def test_size_of_rotated_images_is_that_of_the_decoded_image(image_format: str) -> None:
    for orientation in STORED:
        _same_size(turned(corners().resize((64, 32)), orientation, image_format))


def test_size_includes_a_rotation_that_follows_the_pixels_of_a_png() -> None:
    data = turned(corners().resize((64, 32)), 6, "PNG")
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    moved = data[:start] + data[end:-12] + data[start:end] + data[-12:]  # before IEND, the last 12 bytes
    assert decode_image(moved).size == (64, 32)
    _same_size(moved)


@pytest.mark.parametrize("name", BAD)
def test_size_of_a_bad_image_is_refused_with_the_reason_of_decoding_or_known(name: str) -> None:
    data, reason = BAD[name]
    found = ""
    try:
        assert min(Decoding().size_of(io.BytesIO(data))) > 0  # the header is valid, and the pixels are damaged
    except BadImage as error:
        found = str(error)
    assert not found or re.search(reason, found)


def test_size_limit_applies_to_headers() -> None:
    data = encoded(photo(), "JPEG")
    pixels = photo().width * photo().height
    assert Decoding(max_pixels=pixels).size_of(io.BytesIO(data)) == photo().size[::-1]
    with pytest.raises(BadImage, match=r"max_pixels sets the limit"):
        Decoding(max_pixels=pixels - 1).size_of(io.BytesIO(data))


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "JPEG", "WEBP", "GIF", "BMP"])
def test_size_of_common_formats_needs_no_pixels(image_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(photo().convert("RGB"), image_format)
    monkeypatch.setattr(Decoding, "_decoded", lambda *_: pytest.fail("decoded"))
    for cls in (Image.Image, ImageFile.ImageFile):
        monkeypatch.setattr(cls, "load", lambda *_: pytest.fail("loaded"))
    assert Decoding().size_of(io.BytesIO(data)) == photo().size[::-1]
