"""Writing of PNG with 16 bits a sample, which Pillow writes for grey alone."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldm_ae.images.png import SIGNATURE

_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
_UP = 2
"""The filter that stores differences to the row above."""


def encode_png16(planes: NDArray[Any]) -> bytes:
    """Return a PNG file of (C, H, W) uint16: grey, grey and alpha, RGB or RGBA."""
    channels, height, width = planes.shape
    rows = planes.transpose(1, 2, 0).astype(">u2").reshape(height, -1).view(np.uint8)
    filtered = np.full((height, rows.shape[1] + 1), _UP, np.uint8)
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 16, _COLOUR_TYPES[channels], 0, 0, 0)
    return SIGNATURE + b"".join(
        _chunk(kind, content)
        for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 6)), (b"IEND", b""))
    )


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
