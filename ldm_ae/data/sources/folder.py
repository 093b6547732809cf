"""A folder of image files, or one image file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ldm_ae.data.sources.base import IMAGE_EXTENSIONS, RawImage, Source, StringTable, extension, printable
from ldm_ae.errors import UserError


class FolderSource(Source):
    """All image files below a folder, sorted by their path relative to it, which is also the key.

    The label is the position of the first-level folder among all such folders that hold images, sorted by name; no
    image has a label if one lies directly in the root. Links are followed; names that start with a dot are not looked
    at (`.thumbnails`, and the `._photo.jpg` that macOS leaves).
    """

    name = "folder"
    accepts = "a folder of images"

    def __init__(self, root: Path, paths: list[str]) -> None:
        """Args: root, and the images' POSIX paths relative to it in their final order."""
        self._root = root
        self._paths = StringTable(paths)
        classes = {path.partition("/")[0] for path in paths} if all("/" in path for path in paths) else set()
        self._labels = {name: label for label, name in enumerate(sorted(classes))}

    @classmethod
    def open(cls, location: str) -> FolderSource | None:
        """See `Source.open`."""
        path = Path(location)
        if path.is_file() and extension(path.name) in IMAGE_EXTENSIONS:
            return cls(path.parent, [path.name])
        if not path.is_dir():
            return None
        if not os.access(path, os.R_OK | os.X_OK):
            raise UserError(f"cannot read the folder {location}: permission denied")
        paths = sorted(image_paths(path))
        return cls(path, paths) if paths else None

    def __len__(self) -> int:
        return len(self._paths)

    def key(self, index: int) -> str:
        """Path relative to the root, with forward slashes."""
        return printable(self._paths[index])

    def __getitem__(self, index: int) -> RawImage:
        path = self._paths[index]
        data = (self._root / path).read_bytes()
        return RawImage(printable(path), data, self._labels.get(path.partition("/")[0]))


def image_paths(root: Path) -> Iterator[str]:
    """POSIX paths relative to `root` of the files whose extension is an image's, in no particular order."""
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
            if not name.startswith(".") and extension(name) in IMAGE_EXTENSIONS:
                yield name if prefix == "." else f"{prefix}/{name}"
