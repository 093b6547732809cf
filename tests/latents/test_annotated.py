"""Captions, labels, class names and the summary of a source, in the store, in `inspect` and on the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ldm_ae.cli import main
from ldm_ae.core.errors import UserError
from ldm_ae.data import Annotated, open_source
from ldm_ae.latents import LatentStore, inspect_store, verify_store
from ldm_ae.latents.store.annotated import numbering_warnings, read_classes
from ldm_ae.models import KLAutoencoder
from tests.latents.helpers import encode
from tests.pictures import smooth_picture


def test_invalid_caption_loses_only_itself(tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "cats/001.json").write_text('{"caption": "\\ud83d"}')
    (image_folder / "cats/003.txt").write_bytes(b"\xff")
    (image_folder / "cats/005.txt").write_text("fine")
    summary = encode(tiny_model, image_folder, tmp_path / "store")
    assert (summary.images, summary.bad) == (12, {})
    rows = LatentStore(tmp_path / "store").index.to_pylist()
    assert [row["caption"] for row in rows[:3]] == [None, None, "fine"]
    assert [row["error"] for row in rows[:3]] == [
        "001.json caption: it has an invalid character, the lone surrogate U+D83D at 0",
        "003.txt: it is not UTF-8 (byte 0xff at 0); save it as UTF-8",
        None,
    ]
    assert {row["status"] for row in rows} == {"ok"}
    count = summary.annotations
    assert (count.images, count.captions, count.labels) == (12, 1, 12)
    assert count.lines()[1].startswith("captions or labels of 2 images cannot be used: cats/001.png: 001.json caption:")
    assert verify_store(tmp_path / "store") == []


def test_old_record_with_an_invalid_caption_is_rebuilt(
    tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path
) -> None:
    from ldm_ae.latents.store.records import read_record, write_record
    from tests.latents.test_resume import SHARDS, encode_until

    encode_until(8, tiny_model, image_folder, tmp_path / "store")
    record = read_record(tmp_path / "store", SHARDS[0])
    assert record is not None
    record.rows[0]["caption"] = "\ud83d"
    write_record(tmp_path / "store", SHARDS[0], record)
    assert encode(tiny_model, image_folder, tmp_path / "store", check=False).images == 12
    assert LatentStore(tmp_path / "store").index["caption"].null_count == 12


def test_source_summary_is_in_the_index_and_in_inspect(
    tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path
) -> None:
    (image_folder / "cats/x.dng").write_bytes(b"x")
    (image_folder / "cats/y.txt").write_text("of no image")
    summary = encode(tiny_model, image_folder, tmp_path / "store")
    account = {
        "kind": "folder",
        "images": 12,
        "passed_over": {"images of unsupported formats (.dng)": {"count": 1, "examples": ["cats/x.dng"]}},
        "labels": {"class folders": 12},
        "classes": ["cats", "dogs"],
        "unmatched": {".txt files": {"count": 1, "examples": ["cats/y.txt"]}},
    }
    assert summary.account.to_json() == LatentStore(tmp_path / "store").account() == account
    found = inspect_store(tmp_path / "store")
    assert (found["account"], found["classes"]) == (account, ["cats", "dogs"])
    assert (found["captions"], found["labels"], found["captions_or_labels_not_usable"]) == (0, 12, {})


def test_encode_prints_the_source_summary(
    tiny_model_folder: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (image_folder / "x.psd").write_bytes(b"x")
    (tmp_path / "captions.csv").write_text("file_name,caption\ncats/001.png,a cat\ngone.png,nothing\n")
    arguments = [str(tiny_model_folder), str(image_folder), str(tmp_path / "store"), "--size", "32", "--workers", "0"]
    assert main(["encode", *arguments, "--device", "cpu", "--captions", str(tmp_path / "captions.csv")]) == 0
    assert capsys.readouterr().out.splitlines()[-8:-1] == [
        "source: 12 images (folder)",
        f"captions from {tmp_path}/captions.csv: 1",
        "labels from class folders: 12",
        "classes: 0 cats, 1 dogs",
        "skipped: 1 images of unsupported formats (.psd): x.psd",
        f"{tmp_path}/captions.csv: 1 belongs to no image: gone.png",
        "1 of 12 images have a caption, 12 a label",
    ]


def test_dataset_without_a_class_uses_given_class_numbers(
    tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path
) -> None:
    validation = tmp_path / "validation"
    (validation / "dogs").mkdir(parents=True)
    smooth_picture(1, 40, 40).save(validation / "dogs/1.png")
    train = encode(tiny_model, image_folder, tmp_path / "stores/train")
    assert train.warnings == []
    assert json.loads((tmp_path / "stores/train/classes.json").read_text()) == ["cats", "dogs"]
    alone = encode(tiny_model, validation, tmp_path / "stores/alone")
    classes = tmp_path / "stores/train/classes.json"
    assert alone.warnings == [
        f"class dogs is number 0 here and 1 in {tmp_path}/stores/train; --classes {classes} gives both the same numbers"
    ]
    encode(tiny_model, validation, tmp_path / "stores/alone", classes=read_classes(classes))
    store = LatentStore(tmp_path / "stores/alone")
    assert (store.classes, store.index["label"].to_pylist()) == (["cats", "dogs"], [1])
    assert numbering_warnings(tmp_path / "stores/alone", store.classes) == []
    with pytest.raises(UserError, match="the list of classes has no class dogs"):
        encode(tiny_model, validation, tmp_path / "stores/refused", classes=["cats"])
    assert not (tmp_path / "stores/refused").exists()
    (tmp_path / "a.json").write_text('{"dogs/1.png": 3}')
    with pytest.raises(UserError, match=r"a\.json holds class numbers"):
        labelled = Annotated(open_source(validation), labels=tmp_path / "a.json")
        encode(tiny_model, validation, tmp_path / "stores/other", source=labelled, classes=["cats", "dogs"])


def test_rerun_uses_the_class_names_of_the_store(tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path) -> None:
    encode(tiny_model, image_folder, tmp_path / "store", classes=["dogs", "birds", "cats"])
    again = encode(tiny_model, image_folder, tmp_path / "store")
    assert again.already_complete
    assert LatentStore(tmp_path / "store").index["label"].to_pylist() == [2] * 6 + [0] * 6


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", '["b", "a"]', ["b", "a"]),
        ("a.json", '{"a": 1, "b": 0}', ["b", "a"]),
        ("a.json", '{"a": "1", "b": "0"}', ["b", "a"]),
        ("a.txt", "\ufeffb\na\n", ["b", "a"]),
        ("a.json", '{"a": 1, "b": 2}', "its numbers are not 0 to 1 without duplicates"),
        ("a.json", '["a", "a"]', "a name is duplicated"),
        ("a.json", '["a", 3]', "it is not a list of names"),
        ("a.json", "[]", "it is not a list of names"),
        ("a.json", "{", "it is not JSON"),
        ("a.json", '["\\ud800"]', "invalid character"),
        ("a.txt", None, "No such file"),
    ],
)
def test_class_list_files_are_read_or_refused(
    name: str, content: str | None, expected: list[str] | str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    if isinstance(expected, list):
        assert read_classes(tmp_path / name) == expected
        return
    with pytest.raises(UserError, match=expected):
        read_classes(tmp_path / name)
