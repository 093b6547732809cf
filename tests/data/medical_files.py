"""Small DICOM and NIfTI files."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray


def dicom(stored: NDArray[Any], **values: Any) -> bytes:
    """A DICOM file of (H, W) or (frames, H, W) integers of 16 bits."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    file = Dataset()
    file.file_meta, file.SOPClassUID, file.SOPInstanceUID = meta, SecondaryCaptureImageStorage, "1.2.3"
    file.Rows, file.Columns = stored.shape[-2:]
    if stored.ndim == 3:
        file.NumberOfFrames = len(stored)
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, 16, 15
    file.PixelRepresentation = int(stored.dtype.kind == "i")
    file.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    for name, value in values.items():
        setattr(file, name, value)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, file, enforce_file_format=True)
    return buffer.getvalue()


def write_nifti(path: Path, stored: NDArray[Any], slope: float | None = None, inter: float = 0.0) -> None:
    """A NIfTI file of (x, y, z) or (x, y, z, channels) with raw samples and a slope."""
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(stored, np.eye(4))
    image.header.set_data_dtype(stored.dtype)
    if slope is not None:
        header = image.header  # written by hand, because nibabel chooses a slope of its own
        header.set_slope_inter(slope, inter)
        header["vox_offset"] = 352
        data = header.binaryblock + b"\0" * 4 + stored.tobytes(order="F")
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    else:
        nibabel.save(image, path)


def write_volumes(root: Path) -> str:
    """A folder of a volume of NIfTI and two classes of DICOM."""
    (root / "scans" / "b").mkdir(parents=True)
    (root / "scans" / "a").mkdir()
    values = np.arange(6 * 5 * 3, dtype=np.int16).reshape(6, 5, 3)
    write_nifti(root / "scans" / "a" / "brain.nii.gz", values)
    (root / "scans" / "b" / "one.dcm").write_bytes(dicom(values[:, :, 0]))
    (root / "scans" / "b" / "two.dcm").write_bytes(dicom(values.transpose(2, 0, 1)))
    return str(root / "scans")
