"""A folder of image files, or one image file."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from ldm_ae.data.decoding import BadImage
from ldm_ae.data.regular_files import read_regular_file, read_regular_text
from ldm_ae.data.sources.base import IMAGE_EXTENSIONS, RawImage, Source, StringTable, extension, printable
from ldm_ae.errors import UserError

_TEXTS = ("txt", "json")


class FolderSource(Source):
    """All image files below a folder, sorted by their path relative to it, which is also the key.

    The label is the position of the first-level folder among all such folders that hold images, sorted by name; no
    image has a label if one lies directly in the root. Beside `photo.jpg`, `photo.txt` holds its caption, or
    `photo.json` an object with `caption` and `label`, a class number that goes before the folder's. Links are followed;
    names that start with a dot are not looked at (`.thumbnails`, and the `._photo.jpg` that macOS leaves).
    """

    name = "folder"
    accepts = "a folder of images"

    def __init__(self, root: Path, paths: list[str], beside: Collection[str] = ()) -> None:
        """Args: root, the images' POSIX paths relative to it in their final order, and those of texts beside them."""
        self._root = root
        self._paths = StringTable(paths)
        classes = {path.partition("/")[0] for path in paths} if all("/" in path for path in paths) else set()
        found = set(beside)  # looked up once here: asking the file system for each image costs two calls in each epoch
        texts = [[_beside(path, ending) in found for ending in _TEXTS] for path in paths]
        self._texts = np.array(texts, dtype=bool).reshape(-1, len(_TEXTS))
        self._labels = {name: label for label, name in enumerate(sorted(classes))}

    @classmethod
    def open(cls, location: str) -> FolderSource | None:
        """See `Source.open`."""
        path = Path(location)
        if path.is_file() and extension(path.name) in IMAGE_EXTENSIONS:
            beside = [name for ending in _TEXTS if (path.parent / (name := _beside(path.name, ending))).is_file()]
            return cls(path.parent, [path.name], beside)
        if not path.is_dir():
            return None
        if not os.access(path, os.R_OK | os.X_OK):
            raise UserError(f"cannot read the folder {location}: permission denied")
        files = sorted(_files(path, (*IMAGE_EXTENSIONS, *_TEXTS)))
        paths = [file for file in files if extension(file) not in _TEXTS]
        return cls(path, paths, [file for file in files if extension(file) in _TEXTS]) if paths else None

    def __len__(self) -> int:
        return len(self._paths)

    def key(self, index: int) -> str:
        """Path relative to the root, with forward slashes."""
        return printable(self._paths[index])

    def __getitem__(self, index: int) -> RawImage:
        path = self._paths[index]
        data = read_regular_file(self._root / path)
        label, caption = self._labels.get(path.partition("/")[0]), None
        has_text, has_json = self._texts[index].tolist()
        try:
            if has_json:
                content = json.loads(read_regular_text(self._root / _beside(path, "json")))
                content = content if isinstance(content, dict) else {}
                caption = content["caption"] if isinstance(content.get("caption"), str) else None
                label = content["label"] if type(content.get("label")) is int and content["label"] >= 0 else label
            if has_text:
                caption = read_regular_text(self._root / _beside(path, "txt")).strip()
        except (ValueError, RecursionError) as error:  # JSON's and UTF-8's decoding errors are ValueErrors
            raise BadImage(f"the text beside it cannot be read: {error}") from error
        return RawImage(printable(path), data, label, caption)


def _beside(path: str, ending: str) -> str:
    """`folder/photo.jpg` -> `folder/photo.txt`."""
    return f"{path.rpartition('.')[0]}.{ending}"


def image_paths(root: Path) -> Iterator[str]:
    """POSIX paths relative to `root` of the files whose extension is an image's, in no particular order."""
    return _files(root, IMAGE_EXTENSIONS)


def _files(root: Path, extensions: Collection[str]) -> Iterator[str]:
    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above itself
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        prefix = Path(folder).relative_to(root).as_posix()
        for name in files:
            if not name.startswith(".") and extension(name) in extensions:
                yield name if prefix == "." else f"{prefix}/{name}"
