"""Data sets of the library `datasets`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ldm_ae.core.errors import UserError
from ldm_ae.data import RawImage, open_source
from ldm_ae.data.sources import hf_datasets as hf_datasets_module
from tests.data.source_files import dataset, image, write_hf_datasets


def test_saved_dataset_yields_bytes_labels_and_captions(tmp_path: Path) -> None:
    source = open_source(write_hf_datasets(tmp_path))
    assert [source[i] for i in range(3)] == [RawImage(f"{i:08d}", image(i), i % 2, f"picture {i}") for i in range(3)]


def test_caption_comes_from_the_first_column_with_a_value(tmp_path: Path) -> None:
    data = dataset(3, text=[None, "text 1", None]).add_column("prompt", ["prompt 0", "prompt 1", None])
    data.save_to_disk(str(tmp_path / "saved"))
    source = open_source(tmp_path / "saved")
    assert [source[i].caption for i in range(3)] == ["prompt 0", "text 1", None]
    assert source.account().captions == {"column text": 1, "column prompt": 2}
    data.select([2, 0]).save_to_disk(str(tmp_path / "some"))
    source = open_source(tmp_path / "some")
    assert [source[i].caption for i in range(2)] == [None, "prompt 0"]


def test_dataset_with_several_splits_requires_a_split_name(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "splits"
    datasets.DatasetDict({"train": dataset(3), "test": dataset(2)}).save_to_disk(str(path))
    with pytest.raises(UserError, match=f"several splits; name one: hf:{path}:train, hf:{path}:test"):
        open_source(path)
    with pytest.raises(UserError, match="no split 'val'"):
        open_source(f"hf:{path}:val")
    assert len(open_source(f"hf:{path}:test")) == 2


def test_negative_label_means_unlabelled(tmp_path: Path) -> None:
    dataset(2, label=[-1, 1]).save_to_disk(str(tmp_path / "saved"))
    source = open_source(tmp_path / "saved")
    assert [source[i].label for i in range(2)] == [None, 1]


def test_single_image_column_may_have_any_name(tmp_path: Path) -> None:
    dataset(2, name="pixels").save_to_disk(str(tmp_path / "saved"))
    assert open_source(tmp_path / "saved")[1].data == image(1)


def test_unavailable_hub_dataset_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"'nobody/nothing' could not be downloaded from the Hugging Face hub: .*folder"
    ) as caught:
        open_source("hf:nobody/nothing")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such folder or file: /no/such/data"):
        open_source("hf:/no/such/data")


def test_missing_datasets_package_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'ldm_ae\[datasets\]'"):
        hf_datasets_module.HFDatasetsSource.open("hf:owner/name")
