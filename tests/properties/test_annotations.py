"""Captions and labels: every convention roundtrips, and no input makes a parser fail unexpectedly."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ldm_ae.core.errors import UserError
from ldm_ae.data import Annotated, open_source
from ldm_ae.data.tables import SUFFIXES, read_table
from ldm_ae.data.texts import Annotations, BadText, decode_json, decode_text, read_caption, read_label
from tests.pictures import smooth_picture

# What a file of text can hold; a byte order mark at its beginning is not part of the text.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
CELL = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
NAMES = st.lists(CELL.filter(lambda name: not name.startswith("./")), min_size=1, max_size=6, unique=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.sampled_from(["key", "caption", "a.png"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["key", "caption", "x"]) | TEXT, inner),
    max_leaves=8,
)
ODD = (
    st.binary(max_size=60)
    | TEXT.map(str.encode)
    | st.tuples(st.sampled_from(["key,label", "file_name\tcaption", '"key";text', "key"]), TEXT)
    .map("\n".join)
    .map(str.encode)
    | JSON.map(lambda value: json.dumps(value).encode())
)


def read(content: bytes | str, suffix: str) -> list[tuple[str, dict[str, Any]]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"table{suffix}"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        table = read_table(path, "caption")
    assert table.problems == []
    return [(entry.name, entry.values) for entry in table.entries]


@given(st.dictionaries(CELL.filter(lambda name: not name.startswith("./")), TEXT, max_size=6), st.booleans())
def test_json_annotations_roundtrip(captions: dict[str, str], ascii_only: bool) -> None:
    expected = [(name, {"key": name, "caption": caption}) for name, caption in captions.items()]
    entries = [values for _, values in expected]
    assert read(json.dumps(captions, ensure_ascii=ascii_only), ".json") == expected
    assert read(json.dumps(entries, ensure_ascii=ascii_only), ".json") == expected
    lines = [json.dumps(values, ensure_ascii=ascii_only) for values in entries]
    assert read("\n\n".join(lines), ".jsonl") == expected


@given(NAMES, st.data(), st.sampled_from(",;\t|"), st.sampled_from(["\n", "\r\n", "\r"]), st.booleans())
def test_annotation_tables_roundtrip(
    names: list[str], data: st.DataObject, delimiter: str, end: str, mark: bool
) -> None:
    text = io.StringIO(newline="")
    # A reader takes the line end of a quoted cell as it is.
    cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
    rows = [(name, data.draw(cells)) for name in names]
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerow(["file_name", "caption"])
    writer.writerows(rows)
    content = ("\ufeff" if mark else "") + text.getvalue()
    expected = [(name, {"file_name": name, "caption": caption}) for name, caption in rows]
    for suffix in (".csv", ".tsv"):
        assert read(content, suffix) == expected


@given(ODD, st.sampled_from(SUFFIXES))
@example(b"key\rlabel\n1\n", ".csv")
@example(b"key,label\r1.png,2\r", ".csv")
@example(b"key," + b"a" * 140_000 + b"\n1,2\n", ".csv")
@example(b"[" * 100_000, ".json")
@example(b'{"key": ' * 3_000 + b"1" + b"}" * 3_000, ".jsonl")
def test_arbitrary_bytes_are_read_as_a_table_or_refused(content: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"table{suffix}"
        path.write_bytes(content)
        try:
            problems = read_table(path, "caption").problems
        except BadText as error:
            problems = [str(error)]
    assert all(problem.isprintable() and problem for problem in problems)


@given(ODD, ODD)
def test_arbitrary_bytes_beside_an_image_lose_only_themselves(text: bytes, content: bytes) -> None:
    annotations = Annotations(label=3, caption="before")
    annotations.add_text("a.txt", lambda: text)
    annotations.add_object("a.json", lambda: content)
    assert isinstance(annotations.caption, str)
    assert annotations.caption.encode().decode() == annotations.caption
    assert type(annotations.label) is int
    assert 0 <= annotations.label < 2**63
    assert all(note.isprintable() for note in annotations.notes)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name in ("a.png", "b.png"):
        smooth_picture(0, 8, 8).save(folder / name)
    return folder


VALUES = st.dictionaries(
    st.sampled_from(["a.png", "b.png"]) | st.text(max_size=6), JSON | st.integers(0, 5), max_size=4
)


@given(VALUES | JSON, st.sampled_from(["labels", "captions"]))
@example({"\x1b[31m\n": 3}, "labels")
@example({"a.png": "\x1b[31m\n"}, "labels")
@example({"\ud800": "text"}, "captions")
def test_annotation_file_is_read_or_refused_in_one_line(images: Path, content: Any, kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.json"
        path.write_text(json.dumps(content))
        try:
            source = Annotated(open_source(images), labels=path) if kind == "labels" else Annotated(
                open_source(images), captions=path
            )  # fmt: skip
        except UserError as error:
            assert str(error).isprintable()
            return
        assert all(line.isprintable() for line in source.account().lines())
        for i in range(2):
            raw = source[i]
            assert raw.label is None or 0 <= raw.label < 2**63
            assert raw.caption is None or raw.caption.encode()


@given(st.integers(0, 2**63 - 1))
def test_labels_roundtrip(label: int) -> None:
    assert read_label(label) == read_label(str(label)) == read_label(f" {label}.0 ") == label
    assert read_label(-label - 1) is None


@given(JSON)
def test_arbitrary_values_are_labels_captions_or_refused(value: Any) -> None:
    for check in (read_label, read_caption):
        try:
            check(value)
        except BadText as error:
            assert str(error).isprintable()


@given(JSON, st.integers(0, 3))
def test_utf8_json_roundtrips(value: Any, marks: int) -> None:
    text = json.dumps(value, ensure_ascii=False)
    # NaN is equal to nothing, and is written as it was.
    assert json.dumps(decode_json(b"\xef\xbb\xbf" * marks + text.encode()), ensure_ascii=False) == text


@given(st.binary(max_size=20))
def test_arbitrary_bytes_are_decoded_or_refused(data: bytes) -> None:
    try:
        text = decode_text(data)
    except BadText as error:
        assert str(error).isprintable()
    else:
        assert data.endswith(text.encode())
