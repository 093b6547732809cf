"""Samples of tars, and the members that are skipped."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from ldm_ae.core.errors import UserError
from ldm_ae.data import BadImage, RawImage, open_source
from tests.data.source_files import image, write_tar, write_webdataset


def test_webdataset_yields_images_labels_and_captions(tmp_path: Path) -> None:
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


def test_webdataset_brace_and_glob_patterns_expand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_webdataset_ignores_img2dataset_tables(tmp_path: Path) -> None:
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
    for cut, message in ((4096, "not a valid tar file: unexpected end"), (4000, "truncated"), (10, "truncated")):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        with pytest.raises(UserError, match=message):
            open_source(tmp_path / "cut.tar")
    with pytest.raises(UserError, match="two members hold the image of the sample a"):
        open_source(write_tar(tmp_path / "two.tar", {"a.png": b"1", "a.jpg": b"2"}))
    with pytest.raises(UserError, match=r"no images in .*empty.tar"):
        open_source(write_tar(tmp_path / "empty.tar", {"a.txt": b"1"}))


@pytest.mark.parametrize("cls", [b"cat", b"9223372036854775808", b"-1", b"9" * 5000])
def test_webdataset_sample_with_an_invalid_label_counts_as_bad(tmp_path: Path, cls: bytes) -> None:
    source = open_source(write_tar(tmp_path / "a.tar", {"a.png": b"1", "a.cls": cls}))
    with pytest.raises(BadImage, match=r"its .cls holds '.*', not a class number"):
        source[0]


def test_invalid_webdataset_caption_loses_only_itself(tmp_path: Path) -> None:
    members = {
        "b.png": b"1", "b.json": b"{", "c.png": b"1", "c.txt": b"\xff", "c.json": b'{"caption": "of json", "label": 4}',
        "d.png": b"1", "d.json": b'{"caption": "\\ud800"}', "e.png": b"1", "e.caption": b"\xef\xbb\xbfwith a mark ",
    }  # fmt: skip
    source = open_source(write_tar(tmp_path / "a.tar", members))
    found = [source[i] for i in range(4)]
    assert [raw.caption for raw in found] == [None, "of json", None, "with a mark"]
    assert [raw.label for raw in found] == [None, 4, None, None]
    assert [len(raw.notes) for raw in found] == [1, 1, 1, 0]
    assert found[1].notes[0] == ".txt: it is not UTF-8 (byte 0xff at 0); save it as UTF-8"


def test_tar_summary_counts_its_members(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "a.tar", {"a.png": b"A", "a.txt": b"x", "b.v1.png": b"B", "c.dng": b"C", "d.txt": b"alone"}
    )
    with tarfile.open(path, "a") as archive:
        for name, kind, target in (
            ("hard.png", tarfile.LNKTYPE, "a.png"), ("lost.png", tarfile.LNKTYPE, "x"),
            ("soft.png", tarfile.SYMTYPE, "a.png"),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    source = open_source(path)
    assert [(source.key(i), source[i].data) for i in range(2)] == [("a.tar/a", b"A"), ("a.tar/hard", b"A")]
    account = source.account()
    assert {reason: (group.count, group.examples) for reason, group in account.passed_over.items()} == {
        "images with a dot in their names, which makes them parts of samples (.v1.png)": (1, ["a.tar/b.v1.png"]),
        "images of unsupported formats (.dng)": (1, ["a.tar/c.dng"]),
        "links to missing members, or symbolic links": (2, ["a.tar/lost.png", "a.tar/soft.png"]),
    }
    assert account.unmatched["members of a.tar"].examples == ["d"]
    assert account.captions == {".txt of the sample": 1}
    with pytest.raises(UserError, match=r"no images in .*dots.tar; 1 images with a dot .*: dots.tar/0.0.png"):
        open_source(write_tar(tmp_path / "dots.tar", {"0.0.png": b"1"}))


def test_arrays_are_the_images_of_tars_without_images(tmp_path: Path) -> None:
    arrays = {"a.npy": b"A", "a.cls": b"3", "b.npz": b"B", "c.dcm": b"C", "d.nii.gz": b"D", "e.txt": b"no image"}
    source = open_source(write_tar(tmp_path / "arrays.tar", arrays))
    assert [(source.key(i), source[i].data, source[i].label) for i in range(len(source))] == [
        ("arrays.tar/a", b"A", 3), ("arrays.tar/b", b"B", None), ("arrays.tar/c", b"C", None),
        ("arrays.tar/d", b"D", None),
    ]  # fmt: skip
    assert source.account().unmatched["members of arrays.tar"].examples == ["e"]
    features = {"a.npy": b"features", "a.npz": b"more", "a.jpg": b"A", "b.npy": b"features"}
    write_tar(tmp_path / "both/0.tar", features)
    write_tar(tmp_path / "both/1.tar", {"c.npy": b"features"})
    source = open_source(tmp_path / "both")
    assert [source[i].data for i in range(len(source))] == [b"A"]
    assert source.account().unmatched == {}
    with pytest.raises(UserError, match="two members hold the image of the sample a"):
        open_source(write_tar(tmp_path / "twice.tar", {"a.npy": b"A", "a.npz": b"A"}))
