"""The contents of a folder, walked once for every kind of source."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

from ldm_ae.core.errors import UserError
from ldm_ae.data.account import Account
from ldm_ae.data.sources.interface import ARRAY_EXTENSIONS, IMAGE_EXTENSIONS, VOLUME_EXTENSIONS, extension

TEXTS = ("txt", "caption", "json")
"""Extensions of files that may be beside an image, in the order of priority of their captions."""
TABLES = ("csv", "jsonl", "tsv")
"""Extensions of tables that name images."""
METADATA = tuple(f"metadata.{ending}" for ending in TABLES)
"""Names of tables that are read automatically if the source is a folder of images."""
_OTHER_TABLE = re.compile(r"annotation|caption|label|metadata|prompt", re.IGNORECASE)
"""Names of JSON files that are tables of many images, not the text of one."""
NOT_ANNOTATIONS = "not read as annotations; encode takes such a file with --captions or --labels"
ARCHIVES = ("7z", "bz2", "gz", "rar", "tgz", "xz", "zip", "zst")
_IMAGE_LIKE = (
    "apng", "arw", "avif", "avifs", "bmp", "cr2", "cr3", "dds", "dib", "dng", "eps", "exr", "gif", "hdr", "heic",
    "heif", "icns", "ico", "j2c", "j2k", "jfif", "jif", "jp2", "jpe", "jpeg", "jpf", "jpg", "jpm", "jpx", "jxl", "jxr",
    "mpo", "nef", "orf", "pbm", "pcx", "pfm", "pgm", "png", "pnm", "ppm", "psd", "qoi", "raf", "rw2", "svg", "svgz",
    "tga", "tif", "tiff", "webp", "xcf",
)  # fmt: skip
IMAGE_LIKE = frozenset(_IMAGE_LIKE) - frozenset(IMAGE_EXTENSIONS)
"""Extensions of images that are not opened; the account lists files with these names."""
_KNOWN = IMAGE_LIKE | {
    *IMAGE_EXTENSIONS, *ARRAY_EXTENSIONS, *VOLUME_EXTENSIONS, *TEXTS, *TABLES, *ARCHIVES, "tar", "parquet"
}  # fmt: skip


class Tree:
    """The regular files below a folder that have a known extension, and those that cannot be read.

    Links are followed, except to a folder that contains the link. Names that start with a dot are ignored
    (`.thumbnails`, and the `._photo.jpg` that macOS leaves).

    Args:
        root: The folder.

    Raises:
        UserError: The folder cannot be read.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files: dict[str, list[str]] = {}
        self._left_out: list[tuple[str, str]] = []
        self._twice: list[tuple[str, str]] = []
        if not os.access(root, os.R_OK | os.X_OK):
            raise UserError(f"cannot read the folder {root}: permission denied")
        self._walk()

    def _walk(self) -> None:
        first_names: dict[tuple[int, int], str] = {}
        waiting = deque([("", frozenset[tuple[int, int]]())])
        while waiting:
            prefix, above = waiting.popleft()
            try:
                status = os.stat(self.root / prefix)
                entries = sorted(os.scandir(self.root / prefix), key=lambda entry: entry.name)
            except OSError as error:
                self._left_out.append((f"folders cannot be read ({error.strerror})", prefix))
                continue
            place = status.st_dev, status.st_ino
            if place in above:
                continue
            if first_names.setdefault(place, prefix) != prefix:
                self._twice.append((prefix, first_names[place]))
            for entry in entries:
                name = f"{prefix}{entry.name}"
                ending = extension(entry.name)
                if entry.name.startswith("."):
                    continue
                if _is(entry.is_dir):
                    waiting.append((f"{name}/", above | {place}))
                elif ending in _KNOWN and _is(entry.is_file):
                    self._files.setdefault(ending, []).append(name)
                elif ending in _KNOWN:
                    kind = "broken links" if entry.is_symlink() else "pipes, sockets or devices, not regular files"
                    self._left_out.append((kind, name))

    def files(self, *extensions: str) -> list[str]:
        """Return paths relative to the root, with forward slashes, in the order of their names."""
        return sorted(name for ending in extensions for name in self._files.get(ending, ()))

    def other_tables(self, *, read: Iterable[str]) -> list[str]:
        """Return files that seem to be tables of captions or labels and are not read as such.

        Args:
            read: Names of tables that are read, in any folder.
        """
        images = {name.rpartition(".")[0] for name in self.files(*IMAGE_EXTENSIONS)}
        tables = [name for name in self.files(*TABLES) if name.rpartition("/")[2] not in read]
        return tables + [
            name for name in self.files("json")
            if _OTHER_TABLE.search(name.rpartition("/")[2]) and name.rpartition(".")[0] not in images
        ]  # fmt: skip

    def describe(self, account: Account, *, used: Iterable[str]) -> None:
        """Count unused files in the account.

        Args:
            account: Account of the selected source.
            used: Extensions that the source handles; it counts its own unused files of these itself.
        """
        for reason, name in self._left_out:
            account.add_skipped(reason, name.rstrip("/") or str(self.root))
        reasons = dict.fromkeys(IMAGE_EXTENSIONS, "images outside the selected files")
        reasons |= dict.fromkeys(IMAGE_LIKE, "images of unsupported formats")
        reasons |= dict.fromkeys(ARCHIVES, "compressed archives; unpack them")
        reasons |= {"tar": "tars", "parquet": "Parquet files"}
        reasons |= dict.fromkeys(ARRAY_EXTENSIONS, "arrays beside images")
        reasons |= dict.fromkeys(VOLUME_EXTENSIONS, "slices of volumes")
        for ending in sorted(self._files.keys() & reasons.keys() - set(used)):
            for name in self.files(ending):
                account.add_skipped(f"{reasons[ending]} (.{ending})", name)
        for name in self.other_tables(read=METADATA if set(used) & set(IMAGE_EXTENSIONS) else ()):
            account.add_skipped(NOT_ANNOTATIONS, name)
        for name, first in self._twice:
            account.notes.append(f"{name.rstrip('/')} is the same folder as {first.rstrip('/') or '.'}; both are read")


def is_saved(path: Path) -> bool:
    """Return whether `datasets` has saved a data set, or several splits of one, in this folder."""
    return (path / "dataset_dict.json").is_file() or (
        (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    )


def _is(question: Callable[[], bool]) -> bool:
    """Return the result of a directory entry's method; False for a link that leads to itself."""
    try:
        return question()
    except OSError:
        return False
