"""Labels and captions that lie beside the images, or in a file of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ldm_ae.core.errors import UserError
from ldm_ae.data import Annotated, open_source
from ldm_ae.data.texts import BadText, decode_text, read_label
from tests.pictures import smooth_picture

KEYS = ["cats/1.png", "cats/2.png", "dogs/1.png"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for i, key in enumerate(KEYS):
        (tmp_path / "images" / key).parent.mkdir(parents=True, exist_ok=True)
        smooth_picture(i, 8, 8).save(tmp_path / "images" / key)
    return tmp_path / "images"


def found(source: Annotated | Path) -> list[tuple[int | None, str | None]]:
    opened = open_source(source) if isinstance(source, Path) else source
    return [(opened[i].label, opened[i].caption) for i in range(len(opened))]


def test_text_files_beside_images_are_their_captions(images: Path) -> None:
    assert found(images) == [(0, None), (0, None), (1, None)]
    (images / "cats/1.txt").write_text(" ein Kätzchen\n", encoding="utf-8")
    (images / "cats/2.json").write_text(json.dumps({"caption": "a cat", "label": 7}))
    (images / "dogs/1.json").write_text(json.dumps({"caption": 3, "label": "dog"}))
    assert found(images) == [(0, "ein Kätzchen"), (7, "a cat"), (1, None)]
    (images / "cats/2.txt").write_text("the text goes first")
    (images / "dogs/1.json").write_text("[]")
    assert found(images) == [(0, "ein Kätzchen"), (7, "the text goes first"), (1, None)]
    assert found(images / "cats/1.png") == [(None, "ein Kätzchen")]
    assert [open_source(images).key(i) for i in range(3)] == KEYS


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("cats/1.txt", b"caf\xe9", "1.txt: it is not UTF-8 (byte 0xe9 at 3); save it as UTF-8"),
        ("cats/1.txt", "a cat".encode("utf-16"), "1.txt: it is UTF-16, not UTF-8; save it as UTF-8"),
        ("cats/1.txt", "a cat".encode("utf-32"), "1.txt: it is UTF-32, not UTF-8; save it as UTF-8"),
        ("cats/1.json", b"{", "1.json: it is not JSON: Expecting property name"),
        ("cats/1.json", b"[" * 100_000, "1.json: it is nested too deeply"),
        ("cats/1.json", b'{"caption": "\\ud83d!"}', "1.json caption: it has an invalid character"),
        ("cats/1.json", b'{"caption": 3}', "1.json caption: '3' is not a caption"),
        ("cats/1.json", b'{"label": 9223372036854775808}', "1.json label: '9223372036854775808' is not a class number"),
        ("cats/1.json", b'{"label": "cat"}', "1.json label: 'cat' is not a class number"),
    ],
)  # fmt: skip
def test_unusable_text_file_loses_only_its_caption(name: str, content: bytes, note: str, images: Path) -> None:
    (images / name).write_bytes(content)
    raw = open_source(images)[0]
    assert raw.data == (images / "cats/1.png").read_bytes()
    assert (raw.label, raw.caption) == (0, None)
    assert len(raw.notes) == 1
    assert raw.notes[0].startswith(note)
    assert open_source(images)[1].notes == ()


def test_byte_order_mark_is_removed_from_captions(images: Path, tmp_path: Path) -> None:
    (images / "cats/1.txt").write_text("\ufeffein Kätzchen", encoding="utf-8")
    (images / "cats/2.json").write_text('\ufeff{"caption": "a cat", "label": 4}', encoding="utf-8")
    assert found(images) == [(0, "ein Kätzchen"), (4, "a cat"), (1, None)]
    (tmp_path / "a.json").write_text('\ufeff{"cats/1.png": "one"}', encoding="utf-8")
    assert found(Annotated(open_source(images), captions=tmp_path / "a.json"))[0] == (0, "one")


@pytest.mark.parametrize(
    ("name", "content", "caption"),
    [
        ("1.TXT", "large letters", "large letters"),
        ("1.caption", " kohya's\n", "kohya's"),
        ("1.png.txt", "after the whole name", "after the whole name"),
        ("1.json", '{"text": "as text"}', "as text"),
        ("1.json", '{"prompt": "a prompt", "label": "2"}', "a prompt"),
        ("1.json", '{"caption": ["the first", "the second"]}', "the first"),
        ("1.json", '{"caption": null, "txt": "the next"}', "the next"),
        ("metadata.jsonl", '{"file_name": "1.png", "text": "imagefolder"}\n\n', "imagefolder"),
        ("metadata.csv", "file_name;text\r\n1.png;by, a semicolon\r\n", "by, a semicolon"),
        ("metadata.csv", 'file_name,text\n1.png,"by, quotes\nof ""two"" lines"\n', 'by, quotes\nof "two" lines'),
        ("metadata.jsonl", '{"file_name": "1.png", "caption": [], "text": "not the list"}', "not the list"),
        ("../metadata.csv", "file_name,caption\ncats/1.png,from above\n", "from above"),
        ("metadata.tsv", "path\tprompt\n./1.png\ta tab\n", "a tab"),
        ("1.json", '{"TEXT": "in capitals", "Label": 3.0}', "in capitals"),
        ("1.json", '{"Caption": "one", "CAPTION": "two", "Prompt": "the clear one"}', "the clear one"),
        ("metadata.jsonl", '{"File_Name": "1.png", "Caption": "a capital"}', "a capital"),
        ("metadata.csv", "\ufeff\ufefffile_name,text\n1.png,two marks\n", "two marks"),
    ],
)
def test_caption_naming_conventions_are_recognized(name: str, content: str, caption: str, images: Path) -> None:
    (images / "cats" / name).write_text(content)
    source = open_source(images)
    assert source[0].caption == caption
    assert [source[i].caption for i in (1, 2)] == [None, None]
    assert sum(source.account().captions.values()) == 1


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        (
            "cats/metadata.csv",
            b"file_name,caption\n1.png,caf\xe9\n",
            "it is not UTF-8 (byte 0xe9 at 27); save it as UTF-8",
        ),
        ("metadata.csv", b"id,url\n1,x\n", "no column is named key or file_name; its first line is 'id,url'"),
    ],
)
def test_unusable_metadata_table_loses_only_its_captions(name: str, content: bytes, why: str, images: Path) -> None:
    (images / name).write_bytes(content)
    (images / "cats/2.txt").write_text("beside")
    assert found(images) == [(0, None), (0, "beside"), (1, None)]
    line = open_source(images).account().concerns()[-1]
    assert line.startswith(f"not usable: 1 metadata tables: {name}: {why}")


def test_caption_file_beside_an_image_overrides_the_table(images: Path) -> None:
    (images / "metadata.jsonl").write_text(
        '{"file_name": "cats/1.png", "label": 0, "caption": "table"}\n'
        '{"file_name": "dogs/1.png", "label": 5, "caption": "table"}\n'
        '{"file_name": "cats/2.png", "label": "cat"}\n{"file_name": "gone.png", "label": 1}\n'
    )
    (images / "cats/1.json").write_text('{"caption": "beside", "label": 8}')
    (images / "dogs/1.caption").write_text("beside too")
    (images / "lost.txt").write_text("of no image")
    assert found(images) == [(8, "beside"), (0, None), (5, "beside too")]
    account = open_source(images).account()
    assert account.labels == {".json beside the image": 1, "metadata tables": 2, "class folders": 3}
    assert account.captions == {".caption beside the image": 1, ".json beside the image": 1, "metadata tables": 2}
    assert "\n".join(account.lines()[3:]) == (
        "classes: 0 cats, 1 dogs\n"
        "metadata.jsonl: 1 belongs to no image: gone.png\n"
        ".txt files: 1 belongs to no image: lost.txt\n"
        "not usable: 1 values of metadata.jsonl: cats/2.png: metadata.jsonl label: "
        "'cat' is not a class number from 0 to 2^63 - 1"
    )


@pytest.mark.parametrize(
    ("lines", "captions", "problem"),
    [
        (
            ["cats/1.png,a cat, sitting on a mat", 'cats/2.png,"a cat, standing"', "dogs/1.png,a dog"],
            [None, "a cat, standing", "a dog"],
            "line 2: it has more cells than columns, 3 and 2; quote the text: cats/1.png,a cat, sitting on a mat",
        ),
        (
            ["cats/1.png,a cat", '"cats/2.png","a, forgotten quote', 'dogs/1.png,"a dog"'],
            ["a cat", None, None],
            "lines 3 to 4: a quote that begins there is not closed",
        ),
        (
            ["cats/1.png,a cat", '"cats/2.png","a, forgotten quote', "dogs/1.png,a dog"],
            ["a cat", None, None],
            "lines 3 to 4: a quote that begins there is not closed",
        ),
    ],
)
def test_rows_whose_text_would_be_truncated_are_skipped(
    lines: list[str], captions: list[str | None], problem: str, images: Path, tmp_path: Path
) -> None:
    for folder in (images, tmp_path):
        (folder / "metadata.csv").write_text("\n".join(["file_name,caption", *lines, ""]))
    assert [caption for _, caption in found(images)] == captions
    account = open_source(images).account()
    assert account.captions == {"metadata tables": len(captions) - captions.count(None)}
    assert account.concerns() == [f"not usable: 1 lines of metadata.csv: {problem}"]
    with pytest.raises(UserError) as error:
        Annotated(open_source(images), captions=tmp_path / "metadata.csv")
    assert str(error.value) == f"{tmp_path / 'metadata.csv'}: {problem}"


@pytest.mark.parametrize(
    ("name", "content", "concern"),
    [
        (
            "metadata.jsonl",
            b'{"file_name": "cats/1.png", "objects": {"bbox": [[1, 2, 3, 4]]}}',
            "1 metadata tables: metadata.jsonl: no entry has a caption; its columns are file_name, objects",
        ),
        (
            "metadata.csv",
            b"id,license\n1,MIT\n",
            "1 metadata tables: metadata.csv: no column is named key or file_name; its first line is 'id,license'",
        ),
        (
            "metadata.csv",
            "file_name,caption\ncats/1.png,a cat\n".encode("utf-16"),
            "1 metadata tables: metadata.csv: it is UTF-16, not UTF-8; save it as UTF-8",
        ),
        (
            "metadata.csv",
            b"",
            "1 metadata tables: metadata.csv: no column is named key or file_name; its first line is ''",
        ),
        (
            "metadata.jsonl",
            b'[1]\n{"file_name": "cats/1.png", "label": 3}',
            "1 lines of metadata.jsonl: line 1: it has no key or file_name: [1]",
        ),
    ],
)
def test_unusable_table_loses_only_its_own_values(name: str, content: bytes, concern: str, images: Path) -> None:
    (images / name).write_bytes(content)
    (images / "cats/metadata.jsonl").write_text('{"file_name": "2.png", "caption": "another table"}')
    label = 3 if b"label" in content else 0
    assert found(images) == [(label, None), (0, "another table"), (1, None)]
    assert open_source(images).account().concerns() == [f"not usable: {concern}"]


def test_broken_table_row_loses_only_its_own_value(images: Path) -> None:
    lines = ['{"file_name": "cats/1.png", "text": "one"}', '{"file_name": "cats/2.png", "te', "", "{", "{"]
    last = '{"file_name": "dogs/1.png", "text": "three"}'
    (images / "metadata.jsonl").write_text("\n".join([*lines, last]))
    assert [caption for _, caption in found(images)] == ["one", None, "three"]
    [(what, group)] = open_source(images).account().unusable.items()
    assert (what, group.count) == ("lines of metadata.jsonl", 3)
    assert [example.partition(": it is not JSON: ")[0] for example in group.examples] == ["line 2", "line 4", "line 5"]


def test_empty_table_value_falls_back_to_another_table(images: Path) -> None:
    (images / "metadata.csv").write_text("file_name,caption\ncats/1.png,of the csv\ncats/2.png,too\n")
    lines = ('{"file_name": "cats/1.png", "label": 4}', '{"file_name": "cats/2.png", "caption": "later"}')
    (images / "metadata.jsonl").write_text("\n".join(lines))
    assert found(images) == [(4, "of the csv"), (0, "later"), (1, None)]


def test_annotation_entries_without_captions_are_valid(images: Path, tmp_path: Path) -> None:
    entries = [{"key": KEYS[0], "caption": None, "label": 1}, {"key": KEYS[1]}, {"key": KEYS[2], "caption": "a dog"}]
    (tmp_path / "a.json").write_text(json.dumps(entries))
    source = Annotated(open_source(images), captions=tmp_path / "a.json", labels=tmp_path / "a.json")
    assert found(source) == [(1, None), (None, None), (None, "a dog")]
    assert source.account().captions == {str(tmp_path / "a.json"): 1}
    assert source.account().unmatched == {}


def test_name_shared_by_several_images_is_refused(images: Path, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"1.png": 7}')
    with pytest.raises(UserError, match=r"2 images are named 1.png: cats/1.png, dogs/1.png; name each by its key"):
        Annotated(open_source(images), labels=tmp_path / "a.json")
    smooth_picture(9, 8, 8).save(images / "1.png")
    # Named exactly, it belongs to that image, and to no other of the name.
    assert [label for label, _ in found(Annotated(open_source(images), labels=tmp_path / "a.json"))] == [
        7,
        None,
        None,
        None,
    ]


def test_unmatched_entries_are_counted_in_the_summary(images: Path, tmp_path: Path) -> None:
    rows = "".join(f"gone{i}.png|{i}\n" for i in range(5))
    (tmp_path / "a.csv").write_text(f"filename|label\ncats/1.png|3\n{rows}dogs/1.png|\n")
    source = Annotated(open_source(images), labels=tmp_path / "a.csv")
    assert [label for label, _ in found(source)] == [3, None, None]
    account = source.account()
    assert account.labels == {str(tmp_path / "a.csv"): 1}
    group = account.unmatched[str(tmp_path / "a.csv")]
    assert (group.count, group.examples) == (5, ["gone0.png", "gone1.png", "gone2.png"])
    assert account.lines()[-1].endswith("a.csv: 5 belong to no image: gone0.png, gone1.png, gone2.png, ...")


def test_invalid_caption_in_a_file_loses_only_itself(images: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"key": "cats/1.png", "caption": "\\udc00"}\n{"key": "cats/2.png", "caption": ["good", "second"]}'
    )
    source = Annotated(open_source(images), captions=tmp_path / "a.jsonl")
    assert found(source) == [(0, None), (0, "good"), (1, None)]
    [group] = source.account().unusable.values()
    assert group.count == 1
    assert group.examples[0].startswith("cats/1.png: caption: it has an invalid character, the lone surrogate U+DC00")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps({"cats/1.png": 5, "2.png": 6, "nowhere.png": 7})),
        ("a.json", json.dumps([{"key": "cats/1.png", "label": 5}, {"file_name": "2.png", "label": 6, "more": 0}])),
        ("a.csv", "file_name,label\ncats/1.png,5\n2.png,6\n"),
        ("a.CSV", '\ufefflabel,key\r\n5,"cats/1.png"\r\n6,cats/2.png\r\n'),
    ],
)
def test_label_file_sets_labels(name: str, content: str, images: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    (images / "cats/1.txt").write_text("stays")
    source = Annotated(open_source(images), labels=tmp_path / name)
    assert found(source) == [(5, "stays"), (6, None), (None, None)]
    assert [source.key(i) for i in range(3)] == KEYS


def test_caption_file_sets_captions(images: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('key,caption\n1.png,"one, or the other"\ncats/1.png,ein Kätzchen\n', "utf-8")
    (images / "cats/2.txt").write_text("not in the file")
    source = Annotated(open_source(images), captions=tmp_path / "a.csv")
    assert found(source) == [(0, "ein Kätzchen"), (0, None), (1, "one, or the other")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "must end in .json, .jsonl, .csv, .tsv"),
        ("a.json", "{", "Expecting property name"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.json", "3", "neither an object nor a list"),
        ("a.json", '{"cats/1.png": -1}', "'-1' is not a class number"),
        ("a.json", '{"cats/1.png": true}', "'True' is not a class number"),
        ("a.json", '{"cats/1.png": "cat"}', "'cat' is not a class number"),
        ("a.json", '[{"label": 3}]', r'a.json: entry 1: it has no key or file_name: {"label": 3}$'),
        ("a.csv", "file_name,caption\n1.png,3\n", "a.csv: no entry has a label; its columns are file_name, caption$"),
        ("a.csv", "key,label\n1.png,\n", "a.csv: no entry has a label; its columns are key, label$"),
        (
            "a.jsonl",
            '{"key": "1.png", "label": 1}\n\n{"key"\n{\n',
            r"a.jsonl: line 3: it is not JSON: .* \(and 1 more\)$",
        ),
        (
            "a.csv",
            "key,label\n1.png,3,5\n",
            "a.csv: line 2: it has more cells than columns, 3 and 2; quote the text: 1.png,3,5$",
        ),
        ("a.csv", "key,label\n1.png,3\n1.png,4\n", "it has two values for 1.png"),
        ("a.json", '{"birds/9.png": 1}', "names none of the images; it has birds/9.png, the first image is cats/1.png"),
        ("a.json", '{"cats/1.png": 9223372036854775808}', "'9223372036854775808' is not a class number"),
        ("a.csv", "name,label\n1.png,3\n", "no column is named key or file_name; its first line is 'name,label'"),
        ("a.csv", b"key,label\ncaf\xe9,1\n".decode("latin-1"), "names none"),
        ("a.json", "{}", "names none of the images"),
        ("a.json", None, "No such file"),
    ],
)
def test_invalid_annotation_files_are_refused(
    name: str, content: str | None, message: str, images: Path, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        Annotated(open_source(images), labels=tmp_path / name)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("value", "label"),
    [(3.0, 3), ("3.0", 3), ("3.", 3), (" 7 ", 7), (0.0, 0), (-1.0, None), (float("nan"), None), ("12", 12)],
)
def test_integers_are_valid_labels(value: object, label: int | None) -> None:
    assert read_label(value) == label


@pytest.mark.parametrize("value", [2.5, "2.5", float("inf"), 2.0**63, "1e3", "-1", "\u0663"])
def test_non_integers_are_rejected_as_labels(value: object) -> None:
    with pytest.raises(BadText, match="is not a class number"):
        read_label(value)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ('1.png,"a cat" sits', 'text follows a quoted cell; write quotes inside of it twice: 1.png,"a cat" sits'),
        ('1.png,"a "big" cat"', "text follows a quoted cell"),
        ('1.png,"a \\"big\\" cat"', "text follows a quoted cell"),
    ],
)
def test_row_with_ambiguous_quotes_loses_only_its_caption(row: str, why: str, images: Path) -> None:
    (images / "cats/metadata.csv").write_text(f'file_name,caption\n{row}\n2.png,"a ""good"" row"\n')
    source = open_source(images)
    assert [source[i].caption for i in range(3)] == [None, 'a "good" row', None]
    (group,) = source.account().unusable.values()
    assert group.count == 1
    assert group.examples[0].startswith(f"line 2: {why}")
    assert list(source.account().unusable) == ["lines of cats/metadata.csv"]
    assert "not usable: 1 lines of cats/metadata.csv" in "\n".join(source.account().lines())
    with pytest.raises(UserError, match="line 2: text follows a quoted cell"):
        Annotated(source, captions=images / "cats/metadata.csv")


def test_invalid_quotes_in_the_header_are_reported(images: Path) -> None:
    (images / "metadata.csv").write_text('file_name,"a "caption\ncats/1.png,text\n')
    (group,) = open_source(images).account().unusable.values()
    assert group.examples[0].startswith("metadata.csv: line 1, the names of the columns: text follows a quoted cell")


def test_decoding_errors_report_byte_offsets_in_the_file() -> None:
    """The offset includes the byte order mark, as in an editor or `xxd`."""
    with pytest.raises(BadText, match=r"byte 0xe9 at 9\)"):
        decode_text(b"\xef\xbb\xbfkey,ca\xe9")


def test_ignored_tables_are_reported(images: Path) -> None:
    for name in ("labels.csv", "captions.jsonl", "captions.json", "cats/notes.tsv"):
        (images / name).write_text("")
    (images / "metadata.csv").write_text("file_name,text\ncats/1.png,read\n")
    (images / "cats/9.json").write_text("{}")  # an image's that is gone
    account = open_source(images).account()
    reason = "not read as annotations; encode takes such a file with --captions or --labels"
    assert account.passed_over[reason].count == 4
    assert f"skipped: 4 {reason}: captions.jsonl, cats/notes.tsv, labels.csv, ..." in account.lines()
    assert account.unmatched[".json files"].examples == ["cats/9.json"]


def test_explicitly_named_table_is_not_skipped(images: Path) -> None:
    (images / "labels.csv").write_text("key,label\ncats/1.png,3.0\n")
    assert open_source(images).account().passed_over
    source = Annotated(open_source(images), labels=images / "labels.csv")
    assert source.account().passed_over == {}
    assert found(source)[0] == (3, None)
