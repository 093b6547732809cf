"""What every source promises, for each registered one, and what each kind makes of its files."""

from __future__ import annotations

import importlib.util
import io
import json
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ldm_ae.data import BadImage, RawImage, Source, decode_image, open_source
from ldm_ae.data.sources import SOURCES
from ldm_ae.data.sources import hf_datasets as hf_datasets_module
from ldm_ae.data.sources import photos as photos_module
from ldm_ae.errors import UserError
from scripts.reliability.odd_pictures import encoded
from tests.pictures import smooth_picture


def image(seed: int) -> bytes:
    return encoded(smooth_picture(seed, 24, 16), "PNG")


def write_folder(root: Path) -> str:
    for i in range(4):
        path = root / "images" / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(i))
    return str(root / "images")


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_webdataset(root: Path) -> str:
    for shard in range(2):
        members: dict[str, bytes] = {}
        for i in range(2):
            name = f"{shard}{i}"
            members |= {f"{name}.png": image(10 * shard + i), f"{name}.cls": b"7\n", f"{name}.txt": b"a picture "}
        write_tar(root / "shards" / f"{shard:03d}.tar", members)
    return str(root / "shards")


def dataset(rows: int = 3, name: str = "image", **columns: list):
    datasets = pytest.importorskip("datasets")
    features = {
        name: datasets.Image(),
        "label": datasets.ClassLabel(names=["a", "b"]),
        "text": datasets.Value("string"),
    }
    content = {
        name: [{"bytes": image(i), "path": None} for i in range(rows)],
        "label": [i % 2 for i in range(rows)],
        "text": [f"picture {i}" for i in range(rows)],
    } | columns
    return datasets.Dataset.from_dict(content, features=datasets.Features(features))


def write_hf_datasets(root: Path) -> str:
    dataset().save_to_disk(str(root / "saved"))
    return str(root / "saved")


def write_photos(root: Path) -> str:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    return "photos:train"


@pytest.fixture(autouse=True)
def _private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` converts Parquet files into a cache, and prints bars."""
    if importlib.util.find_spec("datasets"):
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture(params=SOURCES)
def example(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    """A small source of each registered kind; a new kind needs a function `write_NAME` here."""
    write: Callable[[Path], str] = globals()[f"write_{request.param}"]
    source = open_source(write(tmp_path))
    assert type(source) is SOURCES[request.param]
    return source


def test_keys_are_unique_and_those_of_the_images(example: Source) -> None:
    keys = [example.key(i) for i in range(len(example))]
    assert len(set(keys)) == len(keys) >= 3
    assert keys == [example[i].key for i in range(len(example))]
    assert all(key.isprintable() for key in keys)


def test_an_image_is_the_same_bytes_each_time_and_in_a_copy(example: Source) -> None:
    copy: Source = pickle.loads(pickle.dumps(example))
    assert len(copy) == len(example)
    for i in reversed(range(len(example))):  # any order
        raw = example[i]
        assert isinstance(raw, RawImage)
        assert type(raw.data) is bytes
        assert raw == example[i] == copy[i]
        assert decode_image(raw.data).mode == "RGB"


def test_labels_and_captions_are_plain(example: Source) -> None:
    for i in range(len(example)):
        raw = example[i]
        assert raw.label is None or (type(raw.label) is int and raw.label >= 0)
        assert raw.caption is None or type(raw.caption) is str


def test_a_pickle_of_a_source_holds_no_images(example: Source) -> None:
    """It is sent to every worker."""
    assert len(pickle.dumps(example)) < 5_000


def test_every_kind_has_a_name_and_a_description() -> None:
    assert list(SOURCES) == sorted(SOURCES)
    assert all(source.accepts for source in SOURCES.values())


# Folders


def test_folder_takes_every_extension_in_any_case_and_nothing_else(tmp_path: Path) -> None:
    wanted = ["a.PNG", "b.JpEg", "c.jpg", "d.webp", "e.bmp", "f.TIF", "g.tiff", "h.gif", "deep/er/i.png"]
    for name in [*wanted, "notes.txt", "png", ".hidden.png", ".cache/j.png", "deep/._k.png", "l.png.part"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(0))
    source = open_source(tmp_path)
    assert [source.key(i) for i in range(len(source))] == sorted(wanted)


def test_folder_labels_are_first_level_folders_by_name(tmp_path: Path) -> None:
    for name in ("zebra/1.png", "ant/x/2.png", "ant/3.png", "empty/readme.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(image(0))
    source = open_source(tmp_path)
    assert [(source.key(i), source[i].label) for i in range(3)] == [
        ("ant/3.png", 0),
        ("ant/x/2.png", 0),
        ("zebra/1.png", 1),
    ]
    (tmp_path / "root.png").write_bytes(image(0))
    assert {open_source(tmp_path)[i].label for i in range(4)} == {None}


def test_one_image_file_is_a_source(tmp_path: Path) -> None:
    write_folder(tmp_path)
    source = open_source(tmp_path / "images/class0/2.png")
    assert (len(source), source.key(0), source[0].label) == (1, "2.png", None)


def test_links_are_followed_and_circles_end(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "all").mkdir()
    (tmp_path / "all/data").symlink_to(tmp_path / "images")
    (tmp_path / "images/again").symlink_to(tmp_path / "images")
    assert len(open_source(tmp_path / "all")) == 4


def test_file_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = b"caf\xe9.png"
    with open(bytes(tmp_path) + b"/" + name, "wb") as file:
        file.write(image(1))
    source = open_source(tmp_path)
    assert source.key(0) == "caf\\xe9.png"
    assert source[0].data == image(1)


# WebDataset


def test_webdataset_samples(tmp_path: Path) -> None:
    members = {
        "x/b.jpg": b"B",
        "x/b.json": json.dumps({"caption": "from json"}).encode(),
        "a.cls": b"3",
        "a.seg.png": b"a mask, not the image",
        "a.PNG": b"A",
        "text_only.txt": b"no image",
        "c.webp": b"C",
        "c.json": b"[1, 2]",
    }
    source = open_source(write_tar(tmp_path / "one.tar", members))
    assert [source[i] for i in range(len(source))] == [
        RawImage("one.tar/x/b", b"B", None, "from json"),
        RawImage("one.tar/a", b"A", 3, None),
        RawImage("one.tar/c", b"C", None, None),
    ]


def test_webdataset_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("a", "b"):
        for number in range(12):
            write_tar(tmp_path / part / f"{number:03d}.tar", {"s.png": f"{part}{number}".encode()})
    data = [open_source(f"{tmp_path}/a/{{002..010}}.tar")[i].data for i in range(9)]
    assert data == [f"a{number}".encode() for number in range(2, 11)]
    both = open_source(f"{tmp_path}/*/{{000..001}}.tar")
    assert sorted(both.key(i) for i in range(4)) == ["a/000.tar/s", "a/001.tar/s", "b/000.tar/s", "b/001.tar/s"]
    monkeypatch.chdir(tmp_path)
    assert len(open_source("b/00*.tar")) == 10
    with pytest.raises(UserError, match=r"no such tar: .*012.tar \(of "):
        open_source(f"{tmp_path}/a/{{010..012}}.tar")
    with pytest.raises(UserError, match="no such tar"):
        open_source(f"{tmp_path}/c.tar")


def test_webdataset_ignores_the_tables_of_img2dataset(tmp_path: Path) -> None:
    write_webdataset(tmp_path)
    (tmp_path / "shards/000.parquet").write_bytes(b"metadata")
    assert len(open_source(tmp_path / "shards")) == 4


@pytest.mark.parametrize(
    ("name", "mode"), [("a.tar.gz", "w:gz"), ("a.tgz", "w:gz"), ("a.tar", "w:gz"), ("a.tar", "w:xz")]
)
def test_compressed_tars_are_refused(tmp_path: Path, name: str, mode: str) -> None:
    with pytest.raises(UserError, match=r"compressed.*unpack"):
        open_source(write_tar(tmp_path / name, {"a.png": image(0)}, mode))


def test_damaged_tars_are_refused(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", {"a.png": image(0), "b.png": bytes(5000)}).read_bytes()
    for cut, message in ((4096, "not a sound tar file: unexpected end"), (4000, "cut short"), (10, "cut short")):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        with pytest.raises(UserError, match=message):
            open_source(tmp_path / "cut.tar")
    with pytest.raises(UserError, match="two members are the image of the sample a"):
        open_source(write_tar(tmp_path / "two.tar", {"a.png": b"1", "a.jpg": b"2"}))
    with pytest.raises(UserError, match=r"no images in .*empty.tar"):
        open_source(write_tar(tmp_path / "empty.tar", {"a.txt": b"1"}))


def test_webdataset_sample_with_a_wrong_label_or_caption_is_bad(tmp_path: Path) -> None:
    source = open_source(
        write_tar(
            tmp_path / "a.tar",
            {"a.png": b"1", "a.cls": b"cat", "b.png": b"1", "b.json": b"{", "c.png": b"1", "c.txt": b"\xff"},
        )
    )
    for i, reason in enumerate(["its .cls holds 'cat'", "its caption cannot be read", "its caption cannot be read"]):
        with pytest.raises(BadImage, match=reason):
            source[i]


# datasets


def test_saved_data_set_has_bytes_labels_and_captions(tmp_path: Path) -> None:
    source = open_source(write_hf_datasets(tmp_path))
    assert [source[i] for i in range(3)] == [RawImage(f"{i:08d}", image(i), i % 2, f"picture {i}") for i in range(3)]


def test_parquet_file_and_folder(tmp_path: Path) -> None:
    (tmp_path / "tables/data").mkdir(parents=True)
    for part in range(2):
        dataset().to_parquet(str(tmp_path / f"tables/data/train-{part}.parquet"))
    assert len(open_source(tmp_path / "tables/data/train-0.parquet")) == 3
    source = open_source(tmp_path / "tables")
    assert [source[i].data for i in range(6)] == [image(i) for i in (0, 1, 2, 0, 1, 2)]
    assert source.key(5) == "train/00000005"


def test_parquet_of_plain_bytes(tmp_path: Path) -> None:
    """As written by anything but `datasets`: no column is of the type Image."""
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "plain.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"jpg": [image(0), None], "cls": [5, -1]}), path)
    source = open_source(path)
    assert source[0] == RawImage("train/00000000", image(0), 5, None)
    with pytest.raises(BadImage, match="no image in this row"):
        source[1]
    pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), tmp_path / "none.parquet")
    with pytest.raises(UserError, match="no image column; its columns are x"):
        open_source(tmp_path / "none.parquet")


def test_several_splits_must_be_named(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "splits"
    datasets.DatasetDict({"train": dataset(3), "test": dataset(2)}).save_to_disk(str(path))
    with pytest.raises(UserError, match=f"several splits; name one: hf:{path}:train, hf:{path}:test"):
        open_source(path)
    with pytest.raises(UserError, match="no split 'val'"):
        open_source(f"hf:{path}:val")
    assert len(open_source(f"hf:{path}:test")) == 2


def test_label_below_zero_is_none(tmp_path: Path) -> None:
    dataset(2, label=[-1, 1]).save_to_disk(str(tmp_path / "saved"))
    source = open_source(tmp_path / "saved")
    assert [source[i].label for i in range(2)] == [None, 1]


def test_one_image_column_of_any_name(tmp_path: Path) -> None:
    dataset(2, name="pixels").save_to_disk(str(tmp_path / "saved"))
    assert open_source(tmp_path / "saved")[1].data == image(1)


def test_hub_name_that_cannot_be_had() -> None:
    with pytest.raises(
        UserError, match=r"'nobody/nothing' could not be had from the Hugging Face hub: .*folder"
    ) as caught:
        open_source("hf:nobody/nothing")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such folder or file: /no/such/data"):
        open_source("hf:/no/such/data")


def test_datasets_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'ldm_ae\[datasets\]'"):
        hf_datasets_module.HFDatasetsSource.open("hf:owner/name")


# Bundled photos


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


def test_photos_are_found_without_importing_their_packages() -> None:
    program = (
        "import sys; from ldm_ae.data import open_source; source = open_source('photos:train'); source[0]\n"
        "assert 'skimage' not in sys.modules and 'sklearn' not in sys.modules and 'datasets' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_photos_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"scikit-image, which is missing; pip install 'ldm_ae\[offline\]'"):
        open_source("photos:train")


# Locations that are none of these


def test_wrong_locations_say_what_would_do(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    for location, message in (
        (tmp_path / "nowhere", "no such folder or file: .*nowhere\nimages may be a folder of images, "),
        (
            tmp_path / "empty",
            r"no images in .*empty: no file in it or below ends in one of avif bmp gif .* tif tiff webp,",
        ),
        (tmp_path / "notes.txt", r"notes.txt is no image file \(avif bmp gif"),
        (tmp_path / "no.tar", "no such tar"),
        (tmp_path / "no.parquet", "no such Parquet file"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            open_source(location)
        assert str(caught.value).count("\n") <= 1


def test_folder_of_tars_and_images_is_ambiguous(tmp_path: Path) -> None:
    root = Path(write_webdataset(tmp_path))
    (root / "cover.png").write_bytes(image(0))
    with pytest.raises(UserError, match=r"is both a folder of images and a .tar.*name the tars \('.*/\*.tar'\)"):
        open_source(root)
    assert len(open_source(f"{root}/*.tar")) == 4
