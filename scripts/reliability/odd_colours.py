"""Image files whose samples are not sRGB, and formats beside the common ones, each with the sRGB pixels that it means.

Profiles and expected values are computed here from the definitions of the colour spaces, in float64 and without
littlecms or the code under test.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

D50, D65 = (0.3457, 0.3585), (0.3127, 0.3290)
SPACES: dict[str, tuple[tuple[float, ...], tuple[float, float], float | str | None]] = {
    # Primaries (x, y of red, green, blue), white, exponent; None is the curve of sRGB, BT.709 that of BT.709 and 2020.
    "sRGB": ((0.64, 0.33, 0.30, 0.60, 0.15, 0.06), D65, None),
    "Display P3": ((0.680, 0.320, 0.265, 0.690, 0.150, 0.060), D65, None),
    "Adobe RGB": ((0.64, 0.33, 0.21, 0.71, 0.15, 0.06), D65, 563 / 256),
    "ProPhoto": ((0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001), D50, 1.8),
    "linear": ((0.64, 0.33, 0.30, 0.60, 0.15, 0.06), D65, 1.0),
    "BT.2020": ((0.708, 0.292, 0.170, 0.797, 0.131, 0.046), D65, "BT.709"),
    "DCI-P3 of 2.2": ((0.680, 0.320, 0.265, 0.690, 0.150, 0.060), (0.314, 0.351), 2.2),
    "gamma 1.8": ((0.64, 0.33, 0.30, 0.60, 0.15, 0.06), D65, 1.8),
}
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
# Of all spaces inside sRGB's gamut or at its border, greys, and two that are clipped.
COLOURS = np.array(
    [[0, 0, 0], [255, 255, 255], [128, 128, 128], [30, 30, 30], [200, 120, 90], [90, 140, 120], [60, 70, 160],
     [0, 255, 0], [255, 0, 0]], np.uint8,
)[None]  # fmt: skip


def _xyz(chromaticity: tuple[float, ...]) -> np.ndarray:
    x, y = chromaticity
    return np.array([x / y, 1, (1 - x - y) / y])


def _adaptation(white: tuple[float, float], to: tuple[float, float]) -> np.ndarray:
    cones = (_BRADFORD @ _xyz(to)) / (_BRADFORD @ _xyz(white))
    return np.linalg.inv(_BRADFORD) @ np.diag(cones) @ _BRADFORD


def _matrix(name: str, to: tuple[float, float]) -> np.ndarray:
    """Light of a space to XYZ relative to the white `to`."""
    primaries, white, _ = SPACES[name]
    columns = np.stack([_xyz(primaries[i : i + 2]) for i in (0, 2, 4)], axis=1)
    return _adaptation(white, to) @ (columns * np.linalg.solve(columns, _xyz(white)))


def _srgb_light(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _light(name: str, values: np.ndarray) -> np.ndarray:
    gamma = SPACES[name][2]
    if isinstance(gamma, str):
        return np.where(values < 0.081, values / 4.5, ((values + 0.099) / 1.099) ** (1 / 0.45))
    return _srgb_light(values) if gamma is None else values**gamma


def _to_levels(light: np.ndarray) -> np.ndarray:
    """Light of sRGB's primaries to 8 bits, clipped."""
    light = np.clip(light, 0, 1)
    values = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(values * 255).astype(np.uint8)


def meant(samples: np.ndarray, name: str) -> np.ndarray:
    """(..., 3) uint8 of a space to sRGB, relative to the white."""
    light = _light(name, samples / 255)
    return _to_levels(light @ (np.linalg.inv(_matrix("sRGB", D65)) @ _matrix(name, D65)).T)


def meant_by_lab(lab: np.ndarray) -> np.ndarray:
    """(..., 3) L*, a*, b* relative to D50 to sRGB."""
    f = np.stack([(lab[..., 0] + 16) / 116 + lab[..., 1] / 500, (lab[..., 0] + 16) / 116,
                  (lab[..., 0] + 16) / 116 - lab[..., 2] / 200], axis=-1)  # fmt: skip
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * _xyz(D50)
    return _to_levels(xyz @ np.linalg.inv(_matrix("sRGB", D50)).T)


def _icc(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes], name: str) -> bytes:
    """A profile of ICC version 2."""
    text = name.encode() + b"\0"
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78)} | tags
    tags |= {b"cprt": b"text\0\0\0\0none\0", b"wtpt": _icc_xyz(np.array([0.9642, 1, 0.8249]))}
    offset, table, content = 132 + 12 * len(tags), b"", b""
    for tag, value in tags.items():
        table += tag + struct.pack(">II", offset + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    header = struct.pack(">I4xI", offset + len(content), 0x02400000) + kind + space + connection + bytes(12) + b"acsp"
    header = header.ljust(68, b"\0") + _icc_xyz(np.array([0.9642, 1, 0.8249]))[8:]
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + content


def _icc_xyz(values: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *np.rint(values * 65536).astype(int))


def _icc_curve(name: str) -> bytes:
    """A table of 1024 values, as the profile of Hewlett-Packard's that most sRGB files carry has."""
    values = np.rint(_light(name, np.linspace(0, 1, 1024)) * 65535).astype(">u2")
    return b"curv\0\0\0\0" + struct.pack(">I", len(values)) + values.tobytes()


def rgb_icc(name: str, *, padding: int = 0) -> bytes:
    """The profile of one of `SPACES`, with a private tag of noise, which no compression shortens."""
    columns = _matrix(name, D50).T
    tags = {tag: _icc_xyz(column) for tag, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _icc_curve(name))
    if padding:
        tags[b"padd"] = b"data\0\0\0\0" + np.random.default_rng(0).bytes(padding)
    return _icc(b"mntr", b"RGB ", b"XYZ ", tags, name)


def grey_icc(name: str) -> bytes:
    """A profile of grey samples with the curve of one of `SPACES`."""
    return _icc(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": _icc_curve(name)}, f"grey {name}")


INKS = np.array(
    [[100, 0, 0], [55, -30, -40], [50, 65, 0], [90, -5, 80], [0, 0, 0]], float,
)  # fmt: skip
"""L*, a*, b* of bare paper, cyan, magenta, yellow and black in the profile below."""


def cmyk_icc() -> bytes:
    """A printer's profile with a table of two points for each ink; whatever is under black is black."""
    corners = []
    for c, m, y, k in np.ndindex(2, 2, 2, 2):
        mixed = INKS[0] + c * (INKS[1] - INKS[0]) + m * (INKS[2] - INKS[0]) + y * (INKS[3] - INKS[0])
        corners.append(INKS[4] if k else np.clip(mixed, [0, -128, -128], [100, 127, 127]))
    table = np.array(corners) * [255 / 100, 1, 1] + [0, 128, 128]
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + struct.pack(">9i", *(np.eye(3).ravel() * 65536).astype(int))
    lut += bytes(range(256)) * 4 + np.rint(table).astype(np.uint8).tobytes() + bytes(range(256)) * 3
    return _icc(b"prtr", b"CMYK", b"Lab ", {b"A2B0": lut}, "inks")


def _file(pixels: np.ndarray | Image.Image, image_format: str, **options: object) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def png(header: tuple[int, int, int, int], rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of (width, height, bit depth, colour type), with `chunks` before its data; rows have their filter bytes."""
    width, height, depth, colour = header
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )


def _rgb_png(*chunks: tuple[bytes, bytes]) -> bytes:
    return png((COLOURS.shape[1], 1, 8, 2), b"\0" + COLOURS.tobytes(), *chunks)


def _gama(gamma: float) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">I", round(gamma * 100_000))


def _chrm(name: str) -> tuple[bytes, bytes]:
    primaries, white, _ = SPACES[name]
    return b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in (*white, *primaries)))


def _cicp(*code_points: int) -> tuple[bytes, bytes]:
    """The chunk of primaries, transfer, matrix and range, as H.273 numbers them."""
    return b"cICP", bytes(code_points)


def _iccp(profile: bytes) -> tuple[bytes, bytes]:
    return b"iCCP", b"profile\0\0" + zlib.compress(profile)


def _mpo() -> bytes:
    blocks = Image.new("RGB", (16, 16), (255, 0, 0))
    return _file(blocks, "MPO", save_all=True, append_images=[Image.new("RGB", (16, 16), (0, 0, 255))], quality=100)


def _adobe_exif() -> bytes:
    """Exif data as cameras write them that are set to Adobe RGB: colour space 0xFFFF, interoperability index R03."""
    interoperability = struct.pack("<HHHI4sI", 1, 1, 2, 4, b"R03\0", 0)
    details_at, interoperability_at = 8 + 2 + 12 + 4, 8 + 2 + 12 + 4 + 2 + 24 + 4
    details = struct.pack("<HHHIIHHIII", 2, 0xA001, 3, 1, 0xFFFF, 0xA005, 4, 1, interoperability_at, 0)
    first = struct.pack("<HHHIII", 1, 0x8769, 4, 1, details_at, 0)
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + first + details + interoperability


def _blocks(samples: np.ndarray) -> np.ndarray:
    """Each pixel 16 x 16 times, which JPEG keeps."""
    return samples.repeat(16, axis=0).repeat(16, axis=1)


def _cmyk_corners() -> tuple[Image.Image, np.ndarray]:
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 0, 0], [0, 0, 255, 0], [0, 0, 0, 255]]], np.uint8)
    return Image.frombytes("CMYK", (5, 1), inks.tobytes()), meant_by_lab(INKS[None])


def _lab() -> tuple[Image.Image, np.ndarray]:
    lab = np.array([[[0, 0, 0], [100, 0, 0], [50, 0, 0], [60, 30, 20], [40, -20, 10], [30, 10, -40]]], float)
    stored = np.rint(lab * [2.55, 1, 1]).astype(np.int16)
    return Image.frombytes("LAB", (6, 1), stored.astype(np.uint8).tobytes()), meant_by_lab(stored / [2.55, 1, 1])


def coloured(background: tuple[int, int, int]) -> dict[str, tuple[bytes, np.ndarray]]:
    """Name -> (file, expected (H, W, 3) uint8 on `background`), within a level where `TOLERANCE` says no other."""
    p3, prophoto = rgb_icc("Display P3"), rgb_icc("ProPhoto")
    same, grey = COLOURS, np.arange(256, dtype=np.uint8).reshape(16, 16)
    back = np.array(background, np.uint8)
    half = np.concatenate([COLOURS, np.full((1, COLOURS.shape[1], 1), 255, np.uint8)], axis=2)
    half[0, ::2, 3] = 0
    on_background = np.where(half[..., 3:] == 0, back, meant(COLOURS, "Display P3"))
    grey_of: Callable[[str], np.ndarray] = lambda name: meant(grey[..., None].repeat(3, axis=2), name)  # noqa: E731
    cmyk, lab = _cmyk_corners(), _lab()
    few = Image.fromarray(COLOURS).quantize(16)
    few_samples = np.asarray(few.convert("RGB"))
    adobe_jpeg = _file(_blocks(COLOURS[:, :7]), "JPEG", quality=100, subsampling=0, exif=_adobe_exif())
    return {
        "profile, PNG of Display P3": (_file(same, "PNG", icc_profile=p3), meant(same, "Display P3")),
        "profile, TIFF of ProPhoto": (_file(same, "TIFF", icc_profile=prophoto), meant(same, "ProPhoto")),
        "profile, WebP of Adobe RGB": (
            _file(same, "WEBP", lossless=True, icc_profile=rgb_icc("Adobe RGB")), meant(same, "Adobe RGB"),
        ),
        "profile, JPEG of Display P3": (
            _file(_blocks(COLOURS[:, :7]), "JPEG", quality=100, subsampling=0, icc_profile=p3),
            meant(_blocks(COLOURS[:, :7]), "Display P3"),
        ),
        "profile, RGBA of Display P3": (_file(half, "PNG", icc_profile=p3), on_background),
        "profile, palette of ProPhoto": (_file(few, "PNG", icc_profile=prophoto), meant(few_samples, "ProPhoto")),
        "profile, grey of gamma 1.8": (_file(grey, "PNG", icc_profile=grey_icc("gamma 1.8")), grey_of("gamma 1.8")),
        "profile, grey with an RGB profile": (_file(grey, "PNG", icc_profile=prophoto), grey_of("ProPhoto")),
        "profile, CMYK TIFF": (_file(cmyk[0], "TIFF", icc_profile=cmyk_icc()), cmyk[1]),
        "profile of a megabyte": (
            _file(same, "PNG", icc_profile=rgb_icc("Display P3", padding=1_500_000)), meant(same, "Display P3"),
        ),
        "profile, sRGB": (_file(same, "PNG", icc_profile=rgb_icc("sRGB")), same),
        "profile, sRGB for grey": (_file(grey, "PNG", icc_profile=grey_icc("sRGB")), grey[..., None].repeat(3, axis=2)),
        "profile that is damaged": (_file(same, "PNG", icc_profile=p3[:200]), same),
        "profile of inks on RGB": (_file(same, "PNG", icc_profile=cmyk_icc()), same),
        "PNG with gAMA of linear light": (_rgb_png(_gama(1.0)), meant(same, "linear")),
        "PNG with gAMA and cHRM of Adobe RGB": (
            _rgb_png(_gama(256 / 563), _chrm("Adobe RGB")), meant_like_srgb("Adobe RGB"),
        ),
        "PNG with gAMA and cHRM of ProPhoto": (_rgb_png(_gama(1 / 1.8), _chrm("ProPhoto")), meant(same, "ProPhoto")),
        "PNG with gAMA and cHRM of sRGB": (_rgb_png(_gama(0.45455), _chrm("sRGB")), same),
        "PNG with gAMA that sRGB overrides": (_rgb_png(_gama(1.0), (b"sRGB", b"\0")), same),
        "PNG with gAMA of 0": (_rgb_png(_gama(0)), same),
        "PNG with cHRM on a line": (_rgb_png((b"cHRM", struct.pack(">8I", *[31270, 32900] * 4))), same),
        "PNG with cICP of Display P3": (_rgb_png(_cicp(12, 13, 0, 1)), meant(same, "Display P3")),
        "PNG with cICP of Display P3 before sRGB": (
            _rgb_png(_cicp(12, 13, 0, 1), (b"sRGB", b"\0"), _gama(0.45455)), meant(same, "Display P3"),
        ),
        "PNG with cICP of BT.2020": (_rgb_png(_cicp(9, 14, 0, 1)), meant(same, "BT.2020")),
        "PNG with cICP of DCI-P3": (_rgb_png(_cicp(11, 4, 0, 1)), meant(same, "DCI-P3 of 2.2")),
        "PNG with cICP of sRGB before a profile": (_rgb_png(_cicp(1, 13, 0, 1), _iccp(prophoto)), same),
        "PNG with cICP of Display P3 before a profile": (
            _rgb_png(_cicp(12, 13, 0, 1), _iccp(prophoto)), meant(same, "Display P3"),
        ),
        "grey PNG with cICP of linear light": (
            png((256, 1, 8, 0), b"\0" + bytes(range(256)), _cicp(9, 8, 0, 1)), grey_of("linear").reshape(1, 256, 3),
        ),
        "grey PNG with gAMA of linear light": (
            png((256, 1, 8, 0), b"\0" + bytes(range(256)), _gama(1.0)), grey_of("linear").reshape(1, 256, 3),
        ),
        "PNG with cICP of PQ": (_rgb_png(_cicp(9, 16, 0, 1)), same),
        "PNG with cICP of HLG and gAMA": (_rgb_png(_cicp(9, 18, 0, 1), _gama(1.0)), same),
        "PNG with cICP of PQ before a profile": (_rgb_png(_cicp(9, 16, 0, 1), _iccp(p3)), meant(same, "Display P3")),
        "PNG with cICP of narrow range": (_rgb_png(_cicp(12, 13, 0, 0)), same),
        "PNG with cICP of reserved numbers": (_rgb_png(_cicp(99, 13, 0, 1)), same),
        "PNG with cICP that specifies nothing": (_rgb_png(_cicp(2, 2, 0, 1), _gama(1.0)), meant(same, "linear")),
        "PNG with cICP that is damaged": (_rgb_png((b"cICP", b"\x0c"), _gama(1.0)), meant(same, "linear")),
        "16-bit grey PNG with gAMA of 1.8": (
            png((256, 1, 16, 0), b"\0" + (np.arange(256) * 257).astype(">u2").tobytes(), _gama(1 / 1.8)),
            grey_of("gamma 1.8").reshape(1, 256, 3),
        ),
        "JPEG that Exif says is Adobe RGB": (adobe_jpeg, meant(_blocks(COLOURS[:, :7]), "Adobe RGB")),
        "LAB TIFF": (_file(lab[0], "TIFF"), lab[1]),
        "2-bit grey PNG, one grey transparent": (
            png((4, 1, 2, 0), b"\0" + bytes([0b00011011]), (b"tRNS", struct.pack(">H", 2))),
            np.array([[(0,) * 3, (85,) * 3, background, (255,) * 3]], np.uint8),
        ),
        "4-bit grey PNG, one grey transparent": (
            png((2, 1, 4, 0), b"\0" + bytes([0x2A]), (b"tRNS", struct.pack(">H", 10))),
            np.array([[(34,) * 3, background]], np.uint8),
        ),
        "1-bit grey PNG, white transparent": (
            png((2, 1, 1, 0), b"\0" + bytes([0b01000000]), (b"tRNS", struct.pack(">H", 1))),
            np.array([[(0,) * 3, background]], np.uint8),
        ),
        "16-bit RGB PNG, one colour transparent": (
            png((2, 1, 16, 2), b"\0" + struct.pack(">6H", 257, 514, 771, 257, 514, 1028),
                (b"tRNS", struct.pack(">3H", 257, 514, 771))),
            np.array([[background, (1, 2, 4)]], np.uint8),
        ),
        "PNG with many texts": (_rgb_png(*[(b"zTXt", b"part\0\0" + zlib.compress(bytes(10**6)))] * 70), same),
        "PNG with a large compressed text": (
            _rgb_png((b"zTXt", b"workflow\0\0" + zlib.compress(b"x" * 3_000_000))), same,
        ),
        "JPEG 2000": (_file(same, "JPEG2000", irreversible=False), same),
        "MPO": (_mpo(), np.full((16, 16, 3), (254, 0, 0), np.uint8)),
    }  # fmt: skip


def meant_like_srgb(name: str) -> np.ndarray:
    """`COLOURS` under the primaries of a space and the curve of sRGB, which gAMA near 1 / 2.2 stands for."""
    light = _srgb_light(COLOURS / 255)
    return _to_levels(light @ (np.linalg.inv(_matrix("sRGB", D65)) @ _matrix(name, D65)).T)


def tolerance(name: str) -> int:
    """Levels by which a decoder may be off: littlecms computes in 8 bits, JPEG's own transform adds to it."""
    if "JPEG of" in name or "JPEG that" in name:
        return 3
    if "LAB" in name:
        return 2
    if "PNG with cICP" in name:
        return int(not any(word in name for word in ("of sRGB", "HLG", "narrow", "reserved")))
    exact = ("sRGB", "damaged", "on RGB", "gAMA of 0")
    return int(any(word in name for word in ("profile", "gAMA")) and not any(word in name for word in exact))
