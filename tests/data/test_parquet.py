"""Parquet files, read directly."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ldm_ae.core.errors import UserError
from ldm_ae.data import BadImage, RawImage, open_source
from ldm_ae.data import row_groups as row_groups_module
from ldm_ae.data.sources.parquet import split_files
from tests.data.source_files import dataset, image


def test_parquet_file_and_folder_are_sources(tmp_path: Path) -> None:
    (tmp_path / "tables/data").mkdir(parents=True)
    for part in range(2):
        dataset().to_parquet(str(tmp_path / f"tables/data/train-{part}.parquet"))
    assert len(open_source(tmp_path / "tables/data/train-0.parquet")) == 3
    source = open_source(tmp_path / "tables")
    assert [source[i].data for i in range(6)] == [image(i) for i in (0, 1, 2, 0, 1, 2)]
    assert source.key(5) == "train/00000005"


def test_parquet_column_of_plain_bytes_is_read(tmp_path: Path) -> None:
    """Writers other than `datasets` have no column of the type Image."""
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "plain.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"jpg": [image(0), None], "cls": [5, -1]}), path)
    source = open_source(path)
    assert source[0] == RawImage("train/00000000", image(0), 5, None)
    with pytest.raises(BadImage, match="this row has no image"):
        source[1]
    pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), tmp_path / "none.parquet")
    with pytest.raises(UserError, match="no image column; its columns are x"):
        open_source(tmp_path / "none.parquet")


def test_parquet_modified_with_unchanged_mtime_is_reread(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    dataset(2).to_parquet(str(path))
    before = path.stat()
    assert open_source(path)[0].data == image(0)
    dataset(2, image=[{"bytes": image(i), "path": None} for i in (8, 9)]).to_parquet(str(path))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size or path.stat().st_mtime_ns == before.st_mtime_ns
    source = open_source(path)
    assert [source[i].data for i in range(2)] == [image(8), image(9)]
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "names",
    [
        ["a.parquet", "b/c.parquet"],
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002-abc.parquet", "else.parquet",
         "data/extra-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"],
        ["train.parquet", "my_validation_2.parquet", "val-0.parquet", "valid_0.parquet", "tested.parquet"],
        ["x/training/0.parquet", "x/dev-1/0.parquet", "x/my_eval/0.parquet", "train-0.parquet"],
        ["part_train_1.parquet", "train-0.parquet", "trainer.parquet"],
        ["__special__/0.parquet", "0.parquet"],
    ],
)  # fmt: skip
def test_parquet_splits_and_order_match_the_datasets_library(names: list[str], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for number, name in enumerate(names):
        (tmp_path / "t" / name).parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict({"n": [number]}).to_parquet(str(tmp_path / "t" / name))
    theirs = datasets.load_dataset("parquet", data_dir=str(tmp_path / "t"))
    expected = {split: [names[number] for number in rows["n"]] for split, rows in theirs.items()}
    ours = split_files(names)
    assert ours == expected
    assert list(ours) == list(expected)


def test_parquet_random_access_and_large_row_groups_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    import pyarrow.parquet

    content = [bytes([i % 251]) * 1000 for i in range(500)]
    for number, part in enumerate((content[:300], content[300:])):
        pyarrow.parquet.write_table(pyarrow.table({"png": part}), tmp_path / f"{number}.parquet", row_group_size=120)
    for whole in (2**26, 4000):  # row groups as a whole, and four rows at a time
        monkeypatch.setattr(row_groups_module, "_WHOLE", whole)
        source = open_source(tmp_path)
        order = [*range(500), 499, 0, 3, 2, 299, 300, 120, 119]
        assert [source[i].data for i in order] == [content[i] for i in order]
        assert sorted(map(len, source._read._whole.values())) == ([60, 80, 120, 120, 120] if whole > 4000 else [])
    with pytest.raises(IndexError):
        source[500]
    monkeypatch.setattr(row_groups_module, "_WHOLE", 2**26)
    monkeypatch.setattr(row_groups_module, "_KEPT", 250_000)
    source = open_source(tmp_path)
    assert [source[i].data for i in range(500)] == content
    assert list(source._read._whole) == [(tmp_path / "1.parquet", 0), (tmp_path / "1.parquet", 1)]


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("caption", "large_string"),
        ("txt", "string"),
        ("prompt", "string_view"),
        ("text", "dictionary"),
        ("text", "list"),
    ],
)
def test_parquet_captions_accept_every_column_type(column: str, kind: str, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    texts = ["one", None, "three"]
    types = {"large_string": pa.large_string(), "string": pa.string(), "string_view": pa.string_view()}
    values = pa.array(texts, types.get(kind, pa.string()))
    values = values.dictionary_encode() if kind == "dictionary" else values
    values = pa.array([["one", "two"], [], ["three"]]) if kind == "list" else values
    table = pa.table({"image": pa.array([b"0", b"1", b"2"], pa.large_binary()), column: values, "more": [1, 2, 3]})
    try:
        pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    except pa.ArrowNotImplementedError:
        assert kind == "string_view"
        pytest.skip("this pyarrow writes no string_view")
    source = open_source(tmp_path / "t.parquet")
    assert [source[i].caption for i in range(3)] == texts
    # Nulls of lists are not counted by rows.
    assert source.account().captions == {f"column {column}": 3 if kind == "list" else 2}
    assert source.account().notes == ["columns that are not used: more"]


def test_parquet_caption_comes_from_the_first_column_with_a_value(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    table = pa.table(
        {
            "image": [b"0", b"1", b"2", b"3", b"4", b"5"],
            "prompt": ["p0", "p1", "p2", "p3", None, "p5"],
            "caption": pa.array([None, "c1", "", None, None, None], pa.string()),
            "text": pa.array([[], ["t1"], [None], ["t3"], None, [""]], pa.list_(pa.string())),
            "label": pa.array([1, None, -1, 2, 3, 4], pa.int64()),
        }
    )
    (tmp_path / "tables").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "tables/0.parquet", row_group_size=4)
    pyarrow.parquet.write_table(table.drop(["caption", "text"]), tmp_path / "tables/1.parquet", write_statistics=False)
    source = open_source(tmp_path / "tables")
    captions = ["p0", "c1", "p2", "t3", None, "p5", "p0", "p1", "p2", "p3", None, "p5"]
    assert [source[i].caption for i in range(12)] == captions
    assert [source[i].label for i in range(6)] == [1, None, None, 2, 3, 4]
    account = source.account()
    # Without statistics every row of a file may have a value.
    assert account.captions == {"column caption": 2, "column text": 6, "column prompt": 5 + 6}
    assert account.labels == {"column label": 5 + 6}
    assert account.notes == []


def test_parquet_caption_column_of_nulls_yields_no_captions(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    table = pa.table({"image": [b"0", b"1"], "caption": pa.array([None, None], pa.string()), "text": ["one", "two"]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    source = open_source(tmp_path / "t.parquet")
    assert [source[i].caption for i in range(2)] == ["one", "two"]
    assert "captions from column caption: 0, column text: 2" in source.account().lines()


def test_invalid_parquet_values_lose_only_themselves(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    ends = np.array([0, 4, 7], np.int32)  # of "fine" and of half a pair, as some other writers encode it
    texts = pa.StringArray.from_buffers(2, pa.py_buffer(ends.tobytes()), pa.py_buffer(b"fine\xed\xa0\xbd"))
    table = pa.table({"image": [b"0", b"1"], "caption": texts, "label": pa.array([2**64 - 1, 3], pa.uint64())})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    source = open_source(tmp_path / "t.parquet")
    assert (source[0].caption, source[0].label, source[1].caption, source[1].label) == ("fine", None, None, 3)
    assert source[0].notes[0].startswith("column label: '18446744073709551615' is not a class number")
    assert source[1].notes[0].startswith("column caption: it is not UTF-8")


def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    dataset(3).to_parquet(str(path))
    source = open_source(path)
    data = bytearray(path.read_bytes())
    data[4:2000] = bytes(1996)
    path.write_bytes(data)
    with pytest.raises(BadImage, match=r"row group 0 of .*t.parquet cannot be read"):
        source[0]
    path.write_bytes(b"no table")
    with pytest.raises(UserError, match=r"t\.parquet cannot be read as Parquet"):
        open_source(path)
    with pytest.raises(UserError, match=r"t\.parquet cannot be read as Parquet"):
        open_source(tmp_path)


def test_parquet_class_names_are_read(tmp_path: Path) -> None:
    dataset(3).to_parquet(str(tmp_path / "t.parquet"))
    source = open_source(tmp_path / "t.parquet")
    assert source.account().classes == ["a", "b"]
    assert [source.with_classes(["b", "c", "a"], "classes.json")[i].label for i in range(3)] == [2, 0, 2]


def test_parquet_folder_splits_are_selectable(tmp_path: Path) -> None:
    for name, rows in (("train", 3), ("test", 2)):
        dataset(rows).to_parquet(str(tmp_path / f"{name}-0.parquet"))
    with pytest.raises(UserError, match=f"several splits; name one: hf:{tmp_path}:train, hf:{tmp_path}:test"):
        open_source(tmp_path)
    with pytest.raises(UserError, match="has no split 'val'; name one"):
        open_source(f"hf:{tmp_path}:val")
    source = open_source(f"hf:{tmp_path}:test")
    assert [source.key(i) for i in range(len(source))] == ["test/00000000", "test/00000001"]


def test_parquet_column_names_match_case_insensitively(tmp_path: Path) -> None:
    """LAION's files and pandas write such names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({
        "IMAGE": pa.array([b"0", b"1", b"2", b"3"]), "TEXT": ["a", None, "c", "d"],
        "Label": pa.array([3.0, None, float("nan"), 2.5]), "Prompt": ["e", "f", "g", "h"], "PROMPT": ["i"] * 4,
    })  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    assert [(source[i].label, source[i].caption) for i in range(4)] == [
        (3, "a"),
        (None, None),
        (None, "c"),
        (None, "d"),
    ]
    assert source[3].notes == ("column Label: '2.5' is not a class number from 0 to 2^63 - 1",)
    assert source.account().captions == {"column TEXT": 3}
    assert source.account().notes == ["columns that are not used: PROMPT, Prompt"]
