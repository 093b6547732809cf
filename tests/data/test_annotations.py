"""Labels and captions that lie beside the images, or in a file of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ldm_ae.data import Annotated, BadImage, open_source
from ldm_ae.errors import UserError
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


def test_texts_beside_the_images(images: Path) -> None:
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


@pytest.mark.parametrize(("name", "content"), [("cats/1.txt", b"\xff\xfe\xff"), ("cats/1.json", b"{"),
                                               ("cats/1.json", b"[" * 100_000)])  # fmt: skip
def test_an_unreadable_text_makes_a_bad_image(name: str, content: bytes, images: Path) -> None:
    (images / name).write_bytes(content)
    with pytest.raises(BadImage, match="the text beside it cannot be read"):
        open_source(images)[0]
    assert open_source(images)[1].label == 0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps({"cats/1.png": 5, "2.png": 6, "nowhere.png": 7})),
        ("a.json", json.dumps([{"key": "cats/1.png", "label": 5}, {"file_name": "2.png", "label": 6, "more": 0}])),
        ("a.csv", "file_name,label\ncats/1.png,5\n2.png,6\n"),
        ("a.CSV", '\ufefflabel,key\r\n5,"cats/1.png"\r\n6,cats/2.png\r\n'),
    ],
)
def test_labels_from_a_file(name: str, content: str, images: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    (images / "cats/1.txt").write_text("stays")
    source = Annotated(open_source(images), labels=tmp_path / name)
    assert found(source) == [(5, "stays"), (6, None), (None, None)]
    assert [source.key(i) for i in range(3)] == KEYS


def test_captions_from_a_file(images: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('key,caption\n1.png,"one, or the other"\ncats/1.png,ein Kätzchen\n', "utf-8")
    (images / "cats/2.txt").write_text("not in the file")
    source = Annotated(open_source(images), captions=tmp_path / "a.csv")
    assert found(source) == [(0, "ein Kätzchen"), (0, None), (1, "one, or the other")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "must end in .json or .csv"),
        ("a.json", "{", "Expecting property name"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.json", "3", "neither an object nor a list"),
        ("a.json", '{"cats/1.png": -1}', "'-1' is no class number"),
        ("a.json", '{"cats/1.png": true}', "'True' is no class number"),
        ("a.json", '{"cats/1.png": "cat"}', "'cat' is no class number"),
        ("a.json", '[{"label": 3}]', "entry 1 has no key or file_name, or no label"),
        ("a.csv", "file_name,caption\n1.png,3\n", "entry 1 has no key or file_name, or no label"),
        ("a.csv", "key,label\n1.png,3\n1.png,4\n", "it has two values for 1.png"),
        ("a.json", '{"birds/9.png": 1}', "names none of the images; it has birds/9.png, the first image is cats/1.png"),
        ("a.json", "{}", "names none of the images"),
        ("a.json", None, "No such file"),
    ],
)
def test_files_that_do_not_fit(name: str, content: str | None, message: str, images: Path, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        Annotated(open_source(images), labels=tmp_path / name)
    assert len(str(error.value).splitlines()) == 1
