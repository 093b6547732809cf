"""What every source promises, for each registered one, and which of them a location is."""

from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ldm_ae.core.errors import UserError
from ldm_ae.data import Annotated, RawImage, Source, decode_image, open_source
from ldm_ae.data.sources import SOURCES
from ldm_ae.data.sources.volumes import VolumeSource
from tests.data import source_files
from tests.data.source_files import dataset, image, write_folder, write_tar, write_webdataset


@pytest.fixture(params=SOURCES)
def example(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    """A small source of each registered kind; a new kind needs a function `write_NAME` in `source_files.py`."""
    write: Callable[[Path], str] = getattr(source_files, f"write_{request.param}")
    source = open_source(write(tmp_path))
    assert type(source) is SOURCES[request.param]
    return source


def test_source_keys_are_unique_and_match_their_images(example: Source) -> None:
    keys = [example.key(i) for i in range(len(example))]
    assert len(set(keys)) == len(keys) >= 3
    assert keys == [example[i].key for i in range(len(example))]
    assert all(key.isprintable() for key in keys)


def test_source_returns_identical_bytes_repeatedly_and_after_copying(example: Source) -> None:
    copy: Source = pickle.loads(pickle.dumps(example))
    assert len(copy) == len(example)
    for i in reversed(range(len(example))):  # any order
        raw = example[i]
        assert isinstance(raw, RawImage)
        assert type(raw.data) is bytes
        assert raw == example[i] == copy[i]
        if type(example) is not VolumeSource:  # whose slices are not RGB in 8 bits
            assert decode_image(raw.data).mode == "RGB"


def test_source_opens_the_file_of_an_image(example: Source) -> None:
    for i in range(len(example)):
        for source in (example, Annotated(example)):
            with source.open_image(i) as file:
                assert file.read(8) == example[i].data[:8]
                file.seek(0)
                assert file.read() == example[i].data


def test_source_labels_and_captions_are_builtin_types(example: Source) -> None:
    for i in range(len(example)):
        raw = example[i]
        assert raw.label is None or (type(raw.label) is int and raw.label >= 0)
        assert raw.caption is None or type(raw.caption) is str


def test_pickled_source_contains_no_image_data(example: Source) -> None:
    """It is sent to every worker."""
    assert len(pickle.dumps(example)) < 5_000


def test_every_source_class_has_a_name_and_a_description() -> None:
    assert list(SOURCES) == sorted(SOURCES)
    assert all(source.accepts for source in SOURCES.values())


# Bundled photos


def test_folder_named_photos_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such folder or file: photos\n"):
        open_source("photos")
    for name in ("photos", "photos:train"):
        folder = tmp_path / name
        folder.mkdir()
        Image.new("RGB", (8, 8)).save(folder / "mine.png")
        assert [source.key(0) for source in (open_source(name), open_source(f"./{name}"))] == ["mine.png"] * 2


def test_photos_are_split_by_subject() -> None:
    pytest.importorskip("skimage")
    training, held_out = (open_source(f"photos:{split}") for split in ("train", "heldout"))
    names = [{source.key(i) for i in range(len(source))} for source in (training, held_out)]
    assert not names[0] & names[1]
    assert {"scikit-image/motorcycle_left.png", "scikit-image/motorcycle_right.png"} <= names[0]
    assert (len(names[0]), len(names[1])) == (8, 3)
    sizes = [decode_image(held_out[i].data).size for i in range(3)]
    assert sizes == [(451, 300), (640, 427), (640, 427)]
    with pytest.raises(UserError, match="no photos 'photos:test'; there are photos:train and photos:heldout"):
        open_source("photos:test")


@pytest.mark.slow
def test_photo_paths_are_located_without_importing_their_packages() -> None:
    program = (
        "import sys; from ldm_ae.data import open_source; source = open_source('photos:train'); source[0]\n"
        "assert 'skimage' not in sys.modules and 'sklearn' not in sys.modules and 'datasets' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_missing_photo_packages_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"scikit-image, which is missing; pip install 'ldm_ae\[offline\]'"):
        open_source("photos:train")


# Locations that are several of these


def test_ambiguous_folder_requires_an_explicit_source_scheme(tmp_path: Path) -> None:
    """A snapshot of the hub with an image beside its tables: neither hides the other."""
    (tmp_path / "data").mkdir()
    dataset(5).to_parquet(str(tmp_path / "data/t.parquet"))
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets/logo.png").write_bytes(image(0))
    with pytest.raises(UserError) as caught:
        open_source(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} can be read in 2 ways; choose one by its prefix:\n"
        f"  folder:{tmp_path}   1 images\n  parquet:{tmp_path}   5 images"
    )
    assert len(open_source(f"parquet:{tmp_path}")) == 5
    assert len(open_source(f"folder:{tmp_path}")) == 1
    passed_over = open_source(f"parquet:{tmp_path}").account().passed_over
    assert passed_over["images outside the selected files (.png)"].examples == ["assets/logo.png"]
    with pytest.raises(
        UserError, match=r"is not a .tar, a folder of them .*\nit has 1 Parquet files .*t.parquet; 1 images .*logo.png"
    ):
        open_source(f"tars:{tmp_path}")
    write_tar(tmp_path / "more/0.tar", {"a.png": image(0), "b.png": image(1)})
    with pytest.raises(UserError, match=r"in 3 ways(.|\n)*tars:.*   2 images"):
        open_source(tmp_path)


def test_tables_without_images_do_not_make_a_folder_ambiguous(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    write_folder(tmp_path)
    pyarrow.parquet.write_table(pyarrow.table({"url": ["x"]}), tmp_path / "images/meta.parquet")
    source = open_source(tmp_path / "images")
    assert len(source) == 4
    assert source.account().passed_over["Parquet files (.parquet)"].examples == ["meta.parquet"]


# Locations that are none of these


def test_invalid_locations_list_the_accepted_forms(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    for location, message in (
        (tmp_path / "nowhere", "no such folder or file: .*nowhere\nIMAGES must be a folder of images, "),
        (
            tmp_path / "empty",
            r"no images in .*empty: expected files that end in one of avif bmp .* or a saved data set\nneither",
        ),
        (tmp_path / "notes.txt", r"notes.txt is not an image file \(avif bmp gif"),
        (tmp_path / "no.tar", "no such tar"),
        (tmp_path / "no.parquet", "no such Parquet file"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            open_source(location)
        assert str(caught.value).count("\n") <= 1


def test_folder_of_tars_and_images_is_ambiguous(tmp_path: Path) -> None:
    root = Path(write_webdataset(tmp_path))
    (root / "cover.png").write_bytes(image(0))
    with pytest.raises(UserError, match=r"in 2 ways; choose one(.|\n)*  folder:.*   1 images\n  tars:.*   4 images"):
        open_source(root)
    assert len(open_source(f"{root}/*.tar")) == 4
