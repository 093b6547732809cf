"""Folders as image sources, and the files that they skip."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ldm_ae.core.errors import UserError
from ldm_ae.data import open_source
from ldm_ae.data.sources import tree as tree_module
from tests.data.source_files import image, write_folder, write_webdataset


def test_folder_source_reads_only_image_extensions_in_any_case(tmp_path: Path) -> None:
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
    source = open_source(tmp_path)
    assert [source[i].label for i in range(4)] == [0, 0, None, 1]  # ant, ant, the one in the root, zebra
    assert source.account().classes == ["ant", "zebra"]
    assert source.account().labels == {"class folders": 3}


def test_single_image_file_is_a_valid_source(tmp_path: Path) -> None:
    write_folder(tmp_path)
    source = open_source(tmp_path / "images/class0/2.png")
    assert (len(source), source.key(0), source[0].label) == (1, "2.png", None)


def test_folder_summary_counts_its_files(tmp_path: Path) -> None:
    for name in (
        "a/1.png",
        "a/2.dng",
        "b/3.DNG",
        "b/4.psd",
        "b/more.zip",
        "b/5.tar",
        "b/notes.md",
        "b/6.txt",
        "c/7.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(image(0))
    (tmp_path / "a/gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "a/circle.png").symlink_to(tmp_path / "a/circle.png")
    os.mkfifo(tmp_path / "a/pipe.png")
    (tmp_path / "d").symlink_to(tmp_path / "c")
    (tmp_path / "b/5.tar").unlink()
    source = open_source(tmp_path)
    assert [source.key(i) for i in range(len(source))] == ["a/1.png", "c/7.png", "d/7.png"]
    account = source.account()
    assert {reason: (group.count, group.examples) for reason, group in account.passed_over.items()} == {
        "broken links": (2, ["a/circle.png", "a/gone.png"]),
        "pipes, sockets or devices, not regular files": (1, ["a/pipe.png"]),
        "images of unsupported formats (.dng)": (2, ["a/2.dng", "b/3.DNG"]),
        "images of unsupported formats (.psd)": (1, ["b/4.psd"]),
        "compressed archives; unpack them (.zip)": (1, ["b/more.zip"]),
    }
    assert account.unmatched[".txt files"].examples == ["b/6.txt"]
    assert account.notes == ["d is the same folder as c; both are read"]
    assert account.lines()[:3] == [
        "source: 3 images (folder)", "labels from class folders: 3", "classes: 0 a, 1 c, 2 d"
    ]  # fmt: skip
    assert account.to_json()["passed_over"]["broken links"] == {"count": 2, "examples": ["a/circle.png", "a/gone.png"]}


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_unreadable_folder_is_counted_in_the_summary(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "images/class0").chmod(0)
    try:
        account = open_source(tmp_path / "images").account()
    finally:
        (tmp_path / "images/class0").chmod(0o755)
    assert account.passed_over["folders cannot be read (Permission denied)"].examples == ["class0"]


def test_folder_that_fails_to_list_is_counted_in_the_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path)
    scandir = os.scandir

    def fails(path: Path) -> object:
        if str(path).rstrip("/").endswith("class0"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(tree_module.os, "scandir", fails)
    source = open_source(tmp_path / "images")
    assert [source.key(i) for i in range(len(source))] == ["class1/1.png", "class1/3.png"]
    assert source.account().passed_over["folders cannot be read (Permission denied)"].examples == ["class0"]


def test_reading_a_pipe_does_not_block(tmp_path: Path) -> None:
    write_folder(tmp_path)
    source = open_source(tmp_path / "images")
    (tmp_path / "images/class0/0.png").unlink()
    os.mkfifo(tmp_path / "images/class0/0.png")
    with pytest.raises(OSError, match="not a regular file"):
        source[0]


def test_non_utf8_file_names_are_printable(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    for name, content in ((b"1.png", image(0)), (b"2.heic", b""), (b"metadata.csv", b"file_name,text\ngone.png,x\n")):
        with open(folder + b"/" + name, "wb") as file:
            file.write(content)
    account = open_source(tmp_path).account()
    "\n".join(account.lines()).encode()
    json.dumps(account.to_json(), ensure_ascii=False).encode()
    assert account.classes == ["caf\\xe9"]
    assert account.lines()[-1] == "caf\\udce9/metadata.csv: 1 belongs to no image: gone.png"


def test_class_numbers_follow_a_given_class_list(tmp_path: Path) -> None:
    write_folder(tmp_path)
    source = open_source(tmp_path / "images").with_classes(["class1", "other", "class0"], "classes.json")
    assert [source[i].label for i in range(4)] == [2, 2, 0, 0]
    assert source.account().classes == ["class1", "other", "class0"]
    with pytest.raises(UserError, match=r"classes\.json has no class class0; add it at its end"):
        open_source(tmp_path / "images").with_classes(["class1"], "classes.json")
    with pytest.raises(UserError, match="have no names"):
        open_source(write_webdataset(tmp_path)).with_classes(["class1"], "classes.json")


def test_symlinks_are_followed_and_cycles_terminate(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "all").mkdir()
    (tmp_path / "all/data").symlink_to(tmp_path / "images")
    (tmp_path / "images/again").symlink_to(tmp_path / "images")
    assert len(open_source(tmp_path / "all")) == 4


def test_non_utf8_file_names_are_read(tmp_path: Path) -> None:
    name = b"caf\xe9.png"
    with open(bytes(tmp_path) + b"/" + name, "wb") as file:
        file.write(image(1))
    source = open_source(tmp_path)
    assert source.key(0) == "caf\\xe9.png"
    assert source[0].data == image(1)
