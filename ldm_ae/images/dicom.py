"""Slices of DICOM files in the units of their modality, such as Hounsfield units, by pydicom.

The rescale slope and intercept are applied, those of a frame where frames have their own, or the modality's table.
MONOCHROME1, whose smallest value is white, is inverted within the range of its stored bits. Windows, which are for
displays, are not applied.
"""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldm_ae.core.errors import printable
from ldm_ae.images.decoding import BadImage, require_size

MAGIC, MAGIC_AT = b"DICM", 128
_MEANINGS = ("MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def is_dicom(data: bytes) -> bool:
    """Return whether a file begins as DICOM files do."""
    return data[MAGIC_AT : MAGIC_AT + len(MAGIC)] == MAGIC


def missing_package() -> str | None:
    """Return which package must be installed; None if it is there."""
    found = importlib.util.find_spec("pydicom") is not None
    return None if found else "DICOM is read by pydicom; install ldm_ae[medical]"


def count_frames(file: Path | bytes) -> int:
    """Return the number of slices of a DICOM file, from its header.

    Raises:
        BadImage: pydicom is missing, or the file is not a DICOM file of images.
    """
    with _reading():
        header = _read(file, specific_tags=["NumberOfFrames"])
        return int(header.get("NumberOfFrames") or 1)


def read_frame(file: Path | bytes, number: int, max_pixels: int) -> NDArray[Any]:
    """Return one slice in the units of the modality.

    Args:
        file: Path or content of a DICOM file.
        number: The slice, from 0.
        max_pixels: Larger slices are refused before their pixels are expanded.

    Returns:
        (H, W), or (H, W, 3) of colours, in float64.

    Raises:
        BadImage: pydicom is missing, or the file is damaged, too large or of an unsupported kind.
    """
    with _reading():
        header = _read(file)
        if "Rows" not in header or "Columns" not in header:
            raise BadImage("a DICOM file without an image")
        require_size(int(header.Columns), int(header.Rows), max_pixels)
        meaning = header.PhotometricInterpretation
        if meaning not in _MEANINGS:
            raise BadImage(f"DICOM with the photometric interpretation {meaning} is not supported")
        return _in_units(file, header, number)


@contextmanager
def _reading() -> Iterator[None]:
    """Turn errors into `BadImage`, and ignore warnings of values that do not follow the standard."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except (BadImage, OSError):
            raise
        except Exception as error:  # pydicom and its decoders raise many kinds for damaged files
            text = " ".join(str(error).split()) or type(error).__name__  # it lists missing decoders on further lines
            raise BadImage(f"DICOM that cannot be read: {printable(text, 400)}") from error


def _read(file: Path | bytes, **options: Any) -> Any:
    if (missing := missing_package()) is not None:
        raise BadImage(missing)
    import pydicom

    content = io.BytesIO(file) if isinstance(file, bytes) else file
    return pydicom.dcmread(content, stop_before_pixels=True, **options)


def _in_units(file: Path | bytes, header: Any, number: int) -> NDArray[Any]:
    from pydicom.pixels import apply_modality_lut, pixel_array

    stored = pixel_array(io.BytesIO(file) if isinstance(file, bytes) else file, index=number)  # reads this slice alone
    if header.PhotometricInterpretation == "MONOCHROME1":
        bits = int(header.BitsStored)
        extremes = -1 if header.PixelRepresentation else 2**bits - 1  # the smallest and the largest value together
        stored = extremes - stored.astype(np.int64)
    slope, intercept = _rescale_of_frame(header, number)
    if slope is not None:
        return np.asarray(stored, np.float64) * slope + intercept
    return np.asarray(apply_modality_lut(stored, header), np.float64)


def _rescale_of_frame(header: Any, number: int) -> tuple[float | None, float]:
    """Return slope and intercept of the frame, or of all frames, in a file of several; (None, 0) if it has none."""
    groups = [*header.get("PerFrameFunctionalGroupsSequence", [])[number : number + 1]]
    for group in [*groups, *header.get("SharedFunctionalGroupsSequence", [])]:
        for transformation in group.get("PixelValueTransformationSequence", []):
            return float(transformation.RescaleSlope), float(transformation.RescaleIntercept)
    return None, 0.0
