"""Data sets that a naive reader gets wrong, loses images of or waits at, each with what a store of it must hold.

RELIABILITY row 7. They are built in milliseconds; `odd_sources.py` encodes them and compares.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from odd_pictures import encoded
from PIL import Image

UMLAUT = "ein Kätzchen"
LATIN_1 = "café".encode("latin-1")
FIRST_TOO_LARGE = 2**63
"""Labels are int64."""


class Case(NamedTuple):
    """One data set, and what its store and the command's last lines must have.

    `{root}` in `images`, `options`, `account` and `error` is the folder that `build` writes to. Lines are patterns, in
    which * stands for any text.
    """

    build: Callable[[Path], None]
    keys: tuple[str, ...] = ()
    """Of the good images, in order."""
    captions: Mapping[str, str] = {}
    """By key, of all images that have one."""
    labels: Mapping[str, int] = {}
    """By key, of all images that have one."""
    classes: tuple[str, ...] = ()
    unusable: Mapping[str, str] = {}
    """Reason why a valid image's caption or label is not used, by key."""
    bad: Mapping[str, str] = {}
    """Reason why an image is not in the store, by key."""
    account: tuple[str, ...] = ()
    """All lines of the account but the first, in any order."""
    error: tuple[str, ...] = ()
    """All lines of the message of a data set that is refused."""
    images: str = "{root}/images"
    options: tuple[str, ...] = ()
    unprivileged: bool = False
    """Whether the command must run without root's permission to read every file."""


def picture(number: int) -> bytes:
    """A smooth PNG of 20 x 24, another one for each number."""
    coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return encoded(Image.fromarray(coarse).resize((24, 20), Image.Resampling.BICUBIC), "PNG")


def write(root: Path, files: Mapping[str, bytes | str]) -> None:
    """Write files by their paths."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def folder(*names: str) -> Callable[[Path], None]:
    """Build a folder of pictures with these names."""
    return lambda root: write(root / "images", {name: picture(i) for i, name in enumerate(names)})


def with_files(files: Mapping[str, bytes | str], *names: str) -> Callable[[Path], None]:
    """Build a folder of pictures with these names, and other files by their paths from the case's root."""

    def build(root: Path) -> None:
        folder(*names)(root)
        write(root, files)

    return build


def write_tar(path: Path, members: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> None:
    """A tar of files, and of hard links by the members that they link to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.LNKTYPE, target
            archive.addfile(info)


def tar(members: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> Callable[[Path], None]:
    """Build `images.tar`."""
    return lambda root: write_tar(root / "images.tar", members, links)


def write_parquet(path: Path, first: int = 0, count: int = 3, **columns: pa.Array) -> None:
    """A table of the pictures `first`, `first` + 1, ..."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = pa.array([{"bytes": picture(first + i), "path": None} for i in range(count)])
    pq.write_table(pa.table({"image": images, **columns}), path)


def parquet(**columns: pa.Array) -> Callable[[Path], None]:
    """Build a folder of one table of three pictures."""
    return lambda root: write_parquet(root / "images" / "t.parquet", **columns)


def strings(*values: bytes) -> pa.Array:
    """A column of text whose bytes nobody has checked."""
    ends = np.cumsum([0, *map(len, values)], dtype=np.int32)
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(ends.tobytes()), pa.py_buffer(b"".join(values)))


def _hub_snapshot(root: Path) -> None:
    table = root / "images" / "data" / "train-00000-of-00001.parquet"
    write_parquet(table, text=pa.array(["one", "two", "three"]))
    write(root / "images", {"assets/logo.png": picture(9), "README.md": "# A data set"})


def _tars_beside_pictures(root: Path) -> None:
    folder("0.png")(root)
    write_tar(root / "images" / "a.tar", {"0.png": picture(1), "1.png": picture(2)})


def _two_links(root: Path) -> None:
    write(root / "real", {"0.png": picture(0), "1.png": picture(1)})
    (root / "images").mkdir()
    for name in "ab":
        (root / "images" / name).symlink_to(root / "real")


def _circle(root: Path) -> None:
    folder("a/0.png", "b/1.png")(root)
    (root / "images" / "b" / "loop").symlink_to(root / "images")


def _locked(root: Path) -> None:
    folder("0.png", "1.png", "locked/2.png")(root)
    (root / "images" / "locked").chmod(0)


def _no_regular_files(root: Path) -> None:
    folder("0.png", "1.png")(root)
    os.mkfifo(root / "images" / "0.txt")
    os.mkfifo(root / "images" / "pipe.png")
    (root / "images" / "gone.png").symlink_to(root / "nowhere.png")


def _other_formats(root: Path) -> None:
    jpeg = encoded(Image.open(io.BytesIO(picture(0))), "JPEG")
    write(root / "images", {"0.jfif": jpeg, "1.JPE": jpeg, "2.mpo": jpeg, "a.dng": b"II*\0", "b.dng": b"II*\0"})
    write(root / "images", {"c.psd": b"8BPS", "d.svg": "<svg/>"})
    with zipfile.ZipFile(root / "images" / "more.zip", "w") as archive:
        archive.writestr("9.png", picture(9))


def _json(value: object) -> str:
    return json.dumps(value)  # ASCII, so that half of a surrogate pair is an escape


def _surrogate(code: str, place: int) -> str:
    return f"it has an invalid character, the lone surrogate U+{code} at {place}"


THREE = ("0.png", "1.png", "2.png")
ROWS = ("train/00000000", "train/00000001", "train/00000002")
_NO_LABEL = "'9223372036854775808' is not a class number*"

CASES: dict[str, Case] = {
    "captions with lone surrogates": Case(
        with_files({
            "images/0.json": _json({"caption": "\ud83d!"}), "images/1.json": _json({"caption": "fine"}),
            "images/2.json": _json({"caption": "x\udc00", "label": 5}),
        }, *THREE),
        keys=THREE, captions={"1.png": "fine"}, labels={"2.png": 5},
        unusable={"0.png": f"0.json caption: {_surrogate('D83D', 0)}",
            "2.png": f"2.json caption: {_surrogate('DC00', 1)}"},
        account=("captions from .json beside the image: 3", "labels from .json beside the image: 3"),
    ),
    "a list of captions with a lone surrogate": Case(
        with_files({"c.jsonl": "\n".join(
            _json({"file_name": name, "text": text}) for name, text in zip(THREE, ("one", "\udc00", "three"),
            strict=True)
        )}, *THREE),
        keys=THREE, captions={"0.png": "one", "2.png": "three"}, options=("--captions", "{root}/c.jsonl"),
        account=("captions from {root}/c.jsonl: 2",
            f"not usable: 1 *{{root}}/c.jsonl: 1.png: *{_surrogate('DC00', 0)}"),
    ),
    "a tar with a lone surrogate": Case(
        tar({"0.png": picture(0), "0.json": _json({"text": "\ud83d"}).encode(), "1.png": picture(1), "1.txt": b"one"}),
        images="{root}/images.tar", keys=("images.tar/0", "images.tar/1"), captions={"images.tar/1": "one"},
        unusable={"images.tar/0": f".json text: {_surrogate('D83D', 0)}"},
        account=("captions from .txt of the sample: 1, .json of the sample: 1", "labels from .json of the sample: 1"),
    ),
    "a Parquet column that is not UTF-8": Case(
        parquet(caption=strings(b"fine", LATIN_1, b"half \xed\xa0\xbd"), label=pa.array([2, 1, -1])),
        keys=ROWS, captions={ROWS[0]: "fine"}, labels={ROWS[0]: 2, ROWS[1]: 1},
        unusable={key: "column caption: it is not UTF-8*" for key in ROWS[1:]},
        account=("captions from column caption: 3", "labels from column label: 3"),
    ),
    "byte order marks, Latin-1 and UTF-16": Case(
        with_files({
            "images/0.txt": codecs.BOM_UTF8 + UMLAUT.encode(), "images/1.txt": LATIN_1,
            "images/2.txt": UMLAUT.encode("utf-16"), "images/3.json": "\ufeff" + _json({"caption": "a cat",
            "label": 4}),
        }, *THREE, "3.png"),
        keys=(*THREE, "3.png"), captions={"0.png": UMLAUT, "3.png": "a cat"}, labels={"3.png": 4},
        unusable={"1.png": "1.txt: it is not UTF-8 (byte 0xe9 at 3)*", "2.png": "2.txt: it is UTF-16, not UTF-8*"},
        account=(
            "captions from .txt beside the image: 3, .json beside the image: 1",
            "labels from .json beside the image: 1",
        ),
    ),
    "files of labels and captions with byte order marks": Case(
        with_files({"l.csv": "\ufefffile_name,label\r\n0.png,3\r\n2.png,0\r\n", "c.json": '\ufeff{"1.png": "one"}'},
            *THREE),
        keys=THREE, captions={"1.png": "one"}, labels={"0.png": 3, "2.png": 0},
        options=("--labels", "{root}/l.csv", "--captions", "{root}/c.json"),
        account=("captions from {root}/c.json: 1", "labels from {root}/l.csv: 2"),
    ),
    "a file of captions in Latin-1": Case(
        with_files({"c.csv": b"file_name,caption\n0.png,caf\xe9\n"}, *THREE), options=("--captions", "{root}/c.csv"),
        error=("*{root}/c.csv: it is not UTF-8 (byte 0xe9 at *); save it as UTF-8",),
    ),
    "a metadata table in Latin-1": Case(
        with_files({"images/metadata.csv": b"file_name,caption\n0.png,caf\xe9\n", "images/1.txt": "one"}, *THREE),
        keys=THREE, captions={"1.png": "one"},
        account=("captions from .txt beside the image: 1",
            "not usable: 1 *: metadata.csv: it is not UTF-8 (byte 0xe9 at *"),
    ),
    "a snapshot of the hub": Case(
        _hub_snapshot,
        error=("*{root}/images can be read in 2 ways*", "  folder:{root}/images   1 images",
            "  parquet:{root}/images   3 images"),
    ),
    "a snapshot of the hub, its tables": Case(
        _hub_snapshot, images="parquet:{root}/images", keys=ROWS,
        captions=dict(zip(ROWS, ("one", "two", "three"), strict=True)),
        account=("captions from column text: 3",
            "skipped: 1 images outside the selected files (.png): assets/logo.png"),
    ),
    "a snapshot of the hub, its image": Case(
        _hub_snapshot, images="folder:{root}/images", keys=("assets/logo.png",), labels={"assets/logo.png": 0},
        classes=("assets",),
        account=(
            "labels from class folders: 1", "classes: 0 assets",
            "skipped: 1 Parquet files (.parquet): data/train-00000-of-00001.parquet",
        ),
    ),
    "tars beside images": Case(
        _tars_beside_pictures,
        error=("*{root}/images can be read in 2 ways*", "  folder:{root}/images   1 images",
            "  tars:{root}/images   2 images"),
    ),
    "two links to one folder": Case(
        _two_links, keys=("a/0.png", "a/1.png", "b/0.png", "b/1.png"), classes=("a", "b"),
        labels={"a/0.png": 0, "a/1.png": 0, "b/0.png": 1, "b/1.png": 1},
        account=("labels from class folders: 4", "classes: 0 a, 1 b",
            "note: b is the same folder as a; both are read"),
    ),
    "a link to the folder that it lies in": Case(
        _circle, keys=("a/0.png", "b/1.png"), labels={"a/0.png": 0, "b/1.png": 1}, classes=("a", "b"),
        account=("labels from class folders: 2", "classes: 0 a, 1 b"),
    ),
    "a folder that cannot be read": Case(
        _locked, keys=THREE[:2], account=("skipped: 1 folders cannot be read (Permission denied): locked",),
        unprivileged=True,
    ),
    "pipes and broken links": Case(
        _no_regular_files, keys=THREE[:2], options=("--workers", "1"),
        account=(
            "skipped: 1 broken links: gone.png",
            "skipped: 2 pipes, sockets or devices, not regular files: 0.txt, pipe.png",
        ),
    ),
    "formats by their names": Case(
        _other_formats, keys=("0.jfif", "1.JPE", "2.mpo"),
        account=(
            "skipped: 2 images of unsupported formats (.dng): a.dng, b.dng",
            "skipped: 1 images of unsupported formats (.psd): c.psd",
            "skipped: 1 images of unsupported formats (.svg): d.svg",
            "skipped: 1 compressed archives; unpack them (.zip): more.zip",
        ),
    ),
    "dots and hard links in a tar": Case(
        tar({"a.png": picture(0), "a.cls": b"7", "b.v2.png": picture(1), "c.cls": b"8"}, {"c.png": "a.png",
            "d.png": "none.png"}),
        images="{root}/images.tar", keys=("images.tar/a", "images.tar/c"), labels={"images.tar/a": 7,
            "images.tar/c": 8},
        account=(
            "labels from .cls of the sample: 2",
            "skipped: 1 images with a dot in their names*: images.tar/b.v2.png",
            "skipped: 1 links to missing members*: images.tar/d.png",
        ),
    ),
    "captions in metadata.jsonl": Case(
        with_files({"images/a/metadata.jsonl": "\n".join((
            _json({"file_name": "0.png", "text": "one"}), _json({"file_name": "1.png", "text": UMLAUT, "label": 3}),
            _json({"file_name": "9.png", "text": "of nothing"}),
        ))}, "a/0.png", "a/1.png", "b/0.png"),
        keys=("a/0.png", "a/1.png", "b/0.png"), captions={"a/0.png": "one", "a/1.png": UMLAUT},
        labels={"a/0.png": 0, "a/1.png": 3, "b/0.png": 1}, classes=("a", "b"),
        account=(
            "captions from metadata tables: 2", "labels from metadata tables: 1, class folders: 3", "classes: 0 a, 1 b",
            "a/metadata.jsonl: 1 belongs to no image: 9.png",
        ),
    ),
    "captions in metadata.csv": Case(
        with_files({"images/metadata.csv": 'file_name,caption\r\n0.png,"a, b"\r\n./2.png,three\r\n'}, *THREE),
        keys=THREE, captions={"0.png": "a, b", "2.png": "three"}, account=("captions from metadata tables: 2",),
    ),
    "captions between semicolons": Case(
        with_files({"c.csv": "file_name;caption\n0.png;one, with a comma\n2.png;three\nold.png;four\n8.png;five\n"},
            *THREE),
        keys=THREE, captions={"0.png": "one, with a comma", "2.png": "three"}, options=("--captions", "{root}/c.csv"),
        account=("captions from {root}/c.csv: 2", "{root}/c.csv: 2 belong to no image: old.png, 8.png"),
    ),
    "names of caption files": Case(
        with_files({
            "images/0.TXT": "large letters", "images/1.caption": "kohya's", "images/2.png.txt": "the whole name",
            "images/lost.txt": "of nothing",
        }, *THREE),
        keys=THREE, captions={"0.png": "large letters", "1.png": "kohya's", "2.png": "the whole name"},
        account=(
            "captions from .txt beside the image: 2, .caption beside the image: 1",
            ".txt files: 1 belongs to no image: lost.txt",
        ),
    ),
    "a Parquet column of large_string": Case(
        parquet(txt=pa.array(["one", None, "three"], pa.large_string()), cls=pa.array([0, 2, -1])),
        keys=ROWS, captions={ROWS[0]: "one", ROWS[2]: "three"}, labels={ROWS[0]: 0, ROWS[1]: 2},
        account=("captions from column txt: 2", "labels from column cls: 3"),
    ),
    "a Parquet column of lists": Case(
        parquet(prompt=pa.array([["one", "two"], [], None]), url=pa.array(["x", "y", "z"])),
        keys=ROWS, captions={ROWS[0]: "one"},
        account=("captions from column prompt: 3", "note: columns that are not used: url"),
    ),
    "a name shared by two images": Case(
        with_files({"l.json": '{"1.png": 7}'}, "new/1.png", "old/1.png", "old/2.png"), options=("--labels",
            "{root}/l.json"),
        error=("*{root}/l.json: 2 images are named 1.png: new/1.png, old/1.png; name each by its key*",),
    ),
    "a name of one image and of one in a folder": Case(
        with_files({"l.json": '{"1.png": 7, "2.png": 1}'}, "1.png", "old/1.png", "old/2.png"), keys=("1.png",
            "old/1.png", "old/2.png"),
        labels={"1.png": 7, "old/2.png": 1}, options=("--labels", "{root}/l.json"),
        account=("labels from {root}/l.json: 2",),
    ),
    "labels beyond int64": Case(
        with_files({f"images/{i}.json": _json({"label": FIRST_TOO_LARGE - 1 + i, "caption": "x"}) for i in range(2)},
            *THREE[:2]),
        keys=THREE[:2], captions=dict.fromkeys(THREE[:2], "x"), labels={"0.png": FIRST_TOO_LARGE - 1},
        unusable={"1.png": f"1.json label: {_NO_LABEL}"}, options=("--workers", "1"),
        account=("captions from .json beside the image: 2", "labels from .json beside the image: 2"),
    ),
    "a file of labels beyond int64": Case(
        with_files({"l.json": _json({"0.png": FIRST_TOO_LARGE})}, *THREE), options=("--labels", "{root}/l.json"),
        error=(f"*{{root}}/l.json: {_NO_LABEL}",),
    ),
    "a tar with labels beyond int64": Case(
        tar({"0.png": picture(0), "0.cls": b"1", "1.png": picture(1), "1.cls": str(FIRST_TOO_LARGE).encode()}),
        images="{root}/images.tar", keys=("images.tar/0",), labels={"images.tar/0": 1},
        bad={"images.tar/1": "its .cls holds '9223372036854775808', not a class number"},
        options=("--workers", "1", "--max-bad-fraction", "1"), account=("labels from .cls of the sample: 2",),
    ),
    "a Parquet column beyond int64": Case(
        parquet(label=pa.array([1, FIRST_TOO_LARGE, 2**64 - 1], pa.uint64())), keys=ROWS, labels={ROWS[0]: 1},
        unusable={ROWS[1]: f"column label: {_NO_LABEL}",
            ROWS[2]: "column label: '18446744073709551615' is not a class number*"},
        account=("labels from column label: 3",), options=("--workers", "1"),
    ),
    "class folders and an image in the root": Case(
        folder("a/0.png", "b/1.png", "root.png"), keys=("a/0.png", "b/1.png", "root.png"), labels={"a/0.png": 0,
            "b/1.png": 1},
        classes=("a", "b"), account=("labels from class folders: 2", "classes: 0 a, 1 b"),
    ),
}  # fmt: skip
"""By name."""
