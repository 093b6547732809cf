"""Slices of NIfTI volumes in the units of the measurement, by nibabel.

A volume is (x, y, z) or (x, y, z, channels). A slice is one z, with y as its rows and x as its columns, in the order of
the file: nothing is turned or resampled. Slope and intercept are applied. Volumes of `.nii` are mapped, so that a slice
reads itself alone; one of `.nii.gz` is unpacked as a whole, and each process keeps the last one.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldm_ae.core.errors import reason
from ldm_ae.images.decoding import BadImage, require_size

_GZIP = b"\x1f\x8b"
_SECOND = 540  # of NIfTI-2
_HEADERS = {348: (b"n+1\0", 344), _SECOND: (b"n+2\0", 4)}
"""The mark of NIfTI and its place, by the size of the header that a file begins with."""
_LONGEST_HEADER = 544
_MOST_BYTES = 2**30


def is_nifti(data: bytes) -> bool:
    """Return whether a file begins as NIfTI files do, packed or not."""
    start = data[:_LONGEST_HEADER]
    if start.startswith(_GZIP):
        try:
            start = zlib.decompressobj(wbits=31).decompress(data[:4096], _LONGEST_HEADER)
        except zlib.error:
            return False
    sizes = {int.from_bytes(start[:4], order) for order in ("little", "big")}
    return any(size in sizes and start[at : at + 4] == mark for size, (mark, at) in _HEADERS.items())


def missing_package() -> str | None:
    """Return which package must be installed; None if it is there."""
    found = importlib.util.find_spec("nibabel") is not None
    return None if found else "NIfTI is read by nibabel; install ldm_ae[medical]"


def count_slices(file: Path | bytes) -> int:
    """Return the number of slices of a volume, from its header.

    Raises:
        BadImage: nibabel is missing, or the file is not a NIfTI volume.
    """
    return _volume(file)[0][2]


def read_slice(file: Path | bytes, number: int, max_pixels: int) -> NDArray[Any]:
    """Return one slice in the units of the measurement.

    Args:
        file: Path or content of a NIfTI file.
        number: The slice, from 0.
        max_pixels: Larger slices are refused before they are read.

    Returns:
        (H, W), or (H, W, C) of a volume with a fourth axis, in float64.

    Raises:
        BadImage: nibabel is missing, or the file is damaged or too large.
    """
    shape, proxy = _volume(file)
    require_size(shape[0], shape[1], max_pixels)
    try:
        stored = _stored(file) if isinstance(file, Path) else proxy.get_unscaled()
        values = np.asarray(stored.reshape(shape)[:, :, number], np.float64)
        return values.swapaxes(0, 1) * proxy.slope + proxy.inter
    except Exception as error:  # nibabel raises many kinds for damaged files
        raise _damaged(error) from error


def _volume(file: Path | bytes) -> tuple[tuple[int, ...], Any]:
    """Return the shape (x, y, z) or (x, y, z, channels) and nibabel's proxy of the samples."""
    if (missing := missing_package()) is not None:
        raise BadImage(missing)
    import nibabel

    try:
        if isinstance(file, Path):
            image: Any = nibabel.load(file)
        else:
            data = _unpacked(file)
            sizes = {int.from_bytes(data[:4], order) for order in ("little", "big")}
            kind = nibabel.Nifti2Image if _SECOND in sizes else nibabel.Nifti1Image
            image = kind.from_stream(io.BytesIO(data))
        shape, proxy = tuple(int(side) for side in image.shape), image.dataobj
        if proxy.dtype.kind not in "iuf":
            raise BadImage(f"NIfTI with samples of type {proxy.dtype} is not supported")
    except (BadImage, OSError):
        raise
    except Exception as error:  # as above
        raise _damaged(error) from error
    shape = (*shape, 1)[:3] if len(shape) == 2 else shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 4 or len(shape) < 3 or 0 in shape:
        raise BadImage(f"NIfTI of shape {image.shape}; expected (x, y, z) or (x, y, z, channels)")
    return shape, proxy


def _unpacked(data: bytes) -> bytes:
    """Return the content of a packed file in memory, which must be of reasonable size."""
    if not data.startswith(_GZIP):
        return data
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        unpacked = file.read(_MOST_BYTES + 1)
    if len(unpacked) > _MOST_BYTES:
        raise BadImage(f"NIfTI of more than {_MOST_BYTES:,} bytes; name the file as IMAGES to read its slices")
    return unpacked


@lru_cache(maxsize=1)
def _stored(path: Path) -> NDArray[Any]:
    """Return the samples of a file as stored: mapped, or those of the last packed file."""
    import nibabel

    loaded: Any = nibabel.load(path)
    return loaded.dataobj.get_unscaled()


def _damaged(error: Exception) -> BadImage:
    return BadImage(f"NIfTI that cannot be read: {reason(error)}")
