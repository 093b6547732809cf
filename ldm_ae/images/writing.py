"""Writing of images as their specification stores them."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldm_ae.core.errors import UserError
from ldm_ae.images.georeference import ExtraTag, missing_tag
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.images.png16 import encode_png16

FileKind = Literal["png", "tif", "npy"]


def kind_of_files(pixels: PixelSpec, chosen: FileKind | None = None) -> FileKind:
    """Return the kind of files that hold these images: PNG if it can, otherwise arrays of NumPy.

    Args:
        pixels: The images.
        chosen: The kind that the user wants.

    Raises:
        UserError: The chosen kind cannot hold them, or its package is missing.
    """
    possible = pixels.meaning != "channels" and pixels.dtype in (np.uint8, np.uint16)
    if chosen is None:
        return "png" if possible else "npy"
    if chosen == "png" and not possible:
        raise UserError(f"PNG cannot hold images that are {pixels}; write tif or npy")
    if chosen == "tif" and importlib.util.find_spec("tifffile") is None:
        raise UserError("TIFF is written by tifffile; install ldm_ae[tiff], or write npy")
    return chosen


def encode_image(planes: NDArray[Any], pixels: PixelSpec, kind: FileKind, tags: Sequence[ExtraTag] = ()) -> bytes:
    """Return the file of stored samples (C, H, W) in the type of `pixels`. Arrays and TIFF keep this order of axes.

    Args:
        planes: The samples.
        pixels: The images.
        kind: The kind of file.
        tags: Further tags of a TIFF file.
    """
    buffer = io.BytesIO()
    if kind == "npy":
        np.save(buffer, np.ascontiguousarray(planes), allow_pickle=False)
    elif kind == "tif":
        import tifffile

        colours = pixels.meaning in ("rgb", "rgba")
        array = np.ascontiguousarray(planes.transpose(1, 2, 0) if colours else planes)
        tifffile.imwrite(
            buffer, array[0] if pixels.channels == 1 else array, photometric="rgb" if colours else "minisblack",
            planarconfig="contig" if colours else None if pixels.channels == 1 else "separate",
            extrasamples=["unassalpha"] if pixels.meaning == "rgba" else None, compression="zlib",
            extratags=[*tags, *([] if pixels.missing is None else [missing_tag(pixels.missing)])],
        )  # fmt: skip
    elif pixels.bits == 16:
        return encode_png16(planes)
    else:
        picture(planes).save(buffer, format="PNG")
    return buffer.getvalue()


def picture(planes: NDArray[np.uint8]) -> Image.Image:
    """Return the PIL image of (C, H, W) uint8: grey, RGB or RGBA."""
    return Image.fromarray(np.ascontiguousarray(planes[0] if len(planes) == 1 else planes.transpose(1, 2, 0)))
