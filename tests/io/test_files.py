"""Files and folders are whole or not there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ldm_ae.core.errors import UserError
from ldm_ae.io.files import make_folder, read_json, require_new_folder, sha256, write_json, writing, writing_folder


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="stop"), writing(path) as temporary:
        temporary.write_text("new")
        raise RuntimeError("stop")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("many_files", [False, True])
def test_folder_replacement_is_atomic(many_files: bool, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for content in ("first", "second"):
        with writing_folder(folder, many_files=many_files) as temporary:
            (temporary / content).write_text(content)
            assert not (folder / content).exists()
        assert [p.name for p in folder.iterdir()] == [content]
    with pytest.raises(RuntimeError, match="stop"), writing_folder(folder):
        raise RuntimeError("stop")
    assert [p.name for p in folder.iterdir()] == ["second"]
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_writing_to_a_symlink_replaces_the_link_only(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").touch()
    for _ in range(2):
        (tmp_path / "folder").symlink_to(tmp_path / "elsewhere")
        with writing_folder(tmp_path / "folder") as folder:
            (folder / "new").touch()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "folder"]
        assert not (tmp_path / "folder").is_symlink()
        assert [p.name for p in (tmp_path / "elsewhere").iterdir()] == ["precious"]
        shutil.rmtree(tmp_path / "folder")


def test_file_mode_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with writing(tmp_path / "a") as temporary:
            temporary.touch(mode=0o600)
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_json_roundtrip_and_sha256(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": 1\n}\n'
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", float("nan"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff\xfe", "utf-8"),
        (b'{"a":', r"char 5\b"),
        (b'{\n  "a": 1\n} \n', "not the one that this program writes"),
        (b'{\n  "a": 2,\n  "a": 1\n}\n', "not the one that this program writes"),
        (b"NaN\n", "JSON"),
        (b"1e999\n", "JSON"),
    ],
)
def test_invalid_json_is_refused_in_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=reason) as caught:
        read_json(tmp_path / "a.json", as_written=True)
    assert "\n" not in str(caught.value)
    (tmp_path / "a.json").write_bytes(b'{\n  "a": 1\n}\n')
    assert read_json(tmp_path / "a.json", as_written=True) == {"a": 1}


def test_folder_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to .*file/out"):
        make_folder(tmp_path / "file" / "out")


def test_require_new_folder_accepts_only_missing_or_empty_folders(tmp_path: Path) -> None:
    require_new_folder(tmp_path / "out", "the images")
    assert not (tmp_path / "out").exists()
    require_new_folder(tmp_path, "the images")
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match=r"is not empty \(out\); give a new folder for the images"):
        require_new_folder(tmp_path, "the images")
    with pytest.raises(UserError, match=r"out is a file; give a folder for the images"):
        require_new_folder(tmp_path / "out", "the images")
