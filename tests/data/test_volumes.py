"""Slices of DICOM and NIfTI files: names, units and order, and files that are refused."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ldm_ae.core.errors import UserError
from ldm_ae.data import BadImage, open_source
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.images.sample_files import SampleDecoding
from tests.data.medical_files import dicom, write_nifti, write_volumes

HOUNSFIELD = PixelSpec(channels=1, meaning="grey", bits=16, low=(-1024.0,), high=(3071.0,))
FLOATS = PixelSpec(channels=1, meaning="grey", bits=0, low=(-10.0,), high=(70_000.0,))


def planes(data: bytes, pixels: PixelSpec = HOUNSFIELD) -> NDArray[Any]:
    return SampleDecoding(pixels=pixels)(data).image.planes


def test_each_slice_is_an_image_with_its_class(tmp_path: Path) -> None:
    source = open_source(write_volumes(tmp_path))
    keys = [source.key(index) for index in range(len(source))]
    assert keys == [*(f"a/brain.nii.gz/{i}" for i in range(3)), "b/one.dcm", *(f"b/two.dcm/{i}" for i in range(3))]
    assert [source[index].label for index in range(len(source))] == [0, 0, 0, 1, 1, 1, 1]
    expected = np.arange(6 * 5 * 3, dtype=np.int16).reshape(6, 5, 3)
    for index in range(3):
        assert np.array_equal(planes(source[index].data)[0], expected[:, :, index].T)  # x is the column
        assert np.array_equal(planes(source[4 + index].data)[0], expected[:, :, index])
    assert planes(source[0].data).dtype == np.int16
    assert source.account().images == 7
    assert source.account().labels == {"class folders": 7}


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti_has_units_and_channels(tmp_path: Path, name: str) -> None:
    stored = np.arange(4 * 5 * 2 * 3, dtype=np.uint16).reshape(4, 5, 2, 3)
    write_nifti(tmp_path / name, stored, slope=0.5, inter=-3.0)
    source = open_source(tmp_path / name)
    pixels = PixelSpec(channels=3, meaning="channels", bits=0, low=(-3.0,), high=(100.0,))
    assert [source.key(index) for index in range(len(source))] == [f"{name}/0", f"{name}/1"]
    found = planes(source[1].data, pixels)
    assert np.array_equal(found, (stored[:, :, 1] * 0.5 - 3.0).transpose(2, 1, 0).astype(np.float32))
    with pytest.raises(BadImage, match="the file has 3 channels, and the images are grey"):
        planes(source[1].data)


def test_dicom_has_units_and_keeps_16_bits() -> None:
    stored = np.linspace(0, 65535, 30).astype(np.uint16).reshape(5, 6)
    assert np.array_equal(planes(dicom(stored), PixelSpec(channels=1, meaning="grey", bits=16))[0], stored)
    units = planes(dicom(stored // 32, RescaleSlope="2", RescaleIntercept="-1024"))
    assert np.array_equal(units[0], (stored // 32).astype(np.int32) * 2 - 1024)
    fractions = dicom(stored, RescaleSlope="0.25", RescaleIntercept="-1.5")
    assert np.array_equal(planes(fractions, FLOATS)[0], stored.astype(np.float32) * 0.25 - 1.5)
    with pytest.raises(BadImage, match="the file has samples of type float64, and the images are grey"):
        planes(fractions)


@pytest.mark.parametrize(("kind", "together"), [(np.uint16, 4095), (np.int16, -1)])
def test_monochrome1_is_inverted_before_its_units(kind: Any, together: int) -> None:
    stored = np.arange(-10, 20).reshape(5, 6).astype(np.int16) if kind is np.int16 else np.arange(30).reshape(5, 6)
    data = dicom(stored.astype(kind), PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11,
                 RescaleSlope="1", RescaleIntercept="-1000")  # fmt: skip
    pixels = PixelSpec(channels=1, meaning="grey", bits=16, low=(-4096.0,), high=(4095.0,))
    assert np.array_equal(planes(data, pixels)[0], together - stored.astype(np.int64) - 1000)


def test_frames_have_units_of_their_own(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    from pydicom.dataset import Dataset

    groups = []
    for slope in (1, 3):
        units, group = Dataset(), Dataset()
        units.RescaleSlope, units.RescaleIntercept, units.RescaleType = str(slope), "-7", "US"
        group.PixelValueTransformationSequence = [units]
        groups.append(group)
    stored = np.arange(60, dtype=np.uint16).reshape(2, 5, 6)
    (tmp_path / "two.dcm").write_bytes(dicom(stored, PerFrameFunctionalGroupsSequence=groups))
    source = open_source(tmp_path)
    assert np.array_equal(planes(source[1].data)[0], stored[1].astype(np.int32) * 3 - 7)


def test_unusable_files_are_bad_images_in_one_line(tmp_path: Path) -> None:
    write_volumes(tmp_path)
    volume, slices = (tmp_path / "scans/a/brain.nii.gz").read_bytes(), dicom(np.zeros((5, 6), np.uint16))
    multi = dicom(np.zeros((2, 5, 6), np.uint16))
    for data, why in [
        (gzip.decompress(volume), "a volume of 3 slices; give the file"),
        (multi, "a volume of 2 slices; give the file"),
        (slices[:-20], "DICOM that cannot be read"),
        (
            dicom(np.zeros((5, 6), np.uint16), PhotometricInterpretation="PALETTE COLOR"),
            "PALETTE COLOR is not supported",
        ),
    ]:
        with pytest.raises(BadImage, match=why) as error:
            planes(data)
        assert len(str(error.value).splitlines()) == 1
    (tmp_path / "scans/b/one.dcm").write_bytes(slices[:100])
    (tmp_path / "scans/a/brain.nii.gz").write_bytes(volume[:-30])
    source = open_source(tmp_path / "scans")
    assert len(source) == 5  # a file without a header is one image
    for index in range(2):
        with pytest.raises(BadImage):
            planes(source[index].data)


def test_missing_package_is_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = write_volumes(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"brain.nii.gz: NIfTI is read by nibabel; install ldm_ae\[medical\]"):
        open_source(location)


def test_mixed_folder_is_accounted_for(tmp_path: Path) -> None:
    location = Path(write_volumes(tmp_path))
    np.save(location / "a.npy", np.zeros((4, 4)))
    with pytest.raises(UserError, match=r"can be read in 2 ways(.|\n)*folder:.*1 images(.|\n)*volumes:.*7 images"):
        open_source(location)
    account = open_source(f"volumes:{location}").account()
    assert {why: group.count for why, group in account.passed_over.items()} == {"arrays beside images (.npy)": 1}


def test_computed_tomography_of_pydicom_has_hounsfield_units() -> None:
    pydicom = pytest.importorskip("pydicom")
    path = Path(pydicom.__file__).parent / "data/test_files/CT_small.dcm"
    found = planes(path.read_bytes())[0]
    assert (found.shape, found.dtype, found.min(), found.max()) == ((128, 128), np.int16, -896, 1167)
    assert np.array_equal(found, pydicom.dcmread(path).pixel_array - 1024)
