"""Image codecs applied to the same images, as the reference for rate and distortion.

The codecs are JPEG and WebP as Pillow writes them: whole files with headers, at the libraries' quality numbers.
"""

from __future__ import annotations

import io
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm_ae.images.pixels import RGB
from ldm_ae.images.uint8 import from_levels, to_uint8

Codec = Literal["jpeg", "webp"]
CODECS: tuple[Codec, ...] = ("jpeg", "webp")


class Coded(NamedTuple):
    """Images after coding."""

    reconstructions: Tensor
    """Decoded images, (B, 3, H, W) float32 in [-1, 1]."""
    bits: Tensor
    """Bits per image, (B,) float64: 8 times the bytes of its file."""


def code_images(pixel_values: Tensor, codec: Codec, quality: int) -> Coded:
    """Encode each image as a file of its own, and decode it.

    Args:
        pixel_values: (B, 3, H, W) in [-1, 1], rounded to 8 bits here.
        codec: Name of the codec.
        quality: 1 to 95 for JPEG (with optimized Huffman tables, chroma at half resolution), 0 to 100 for WebP (lossy).
    """
    reconstructions, bits = [], []
    for levels in to_uint8(pixel_values).permute(0, 2, 3, 1).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(levels).save(file, codec, quality=quality, **({"optimize": True} if codec == "jpeg" else {}))
        bits.append(8 * file.tell())
        with Image.open(file) as decoded:
            reconstructions.append(torch.from_numpy(np.array(decoded.convert(RGB.mode))).permute(2, 0, 1))
    return Coded(from_levels(torch.stack(reconstructions)), torch.tensor(bits, dtype=torch.float64))
