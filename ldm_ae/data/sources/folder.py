"""A folder of image files, or one image file."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ldm_ae.data.account import Account, Group
from ldm_ae.data.sources.interface import (
    ARRAY_EXTENSIONS,
    IMAGE_EXTENSIONS,
    RawImage,
    Source,
    StringTable,
    extension,
    numbered,
    open_regular,
    read_regular,
    valid_text,
)
from ldm_ae.data.sources.tree import METADATA, TABLES, TEXTS, Tree
from ldm_ae.data.tables import read_table
from ldm_ae.data.texts import CAPTION_NAMES, LABEL_NAMES, Annotations, BadText


class FolderSource(Source):
    """All image files below a folder, sorted by their path relative to it, which is also the key.

    The label is the position of the first-level folder among all such folders that hold images, sorted by name; an
    image directly in the root has no label. Beside `photo.jpg`, `photo.txt` or `photo.caption` holds its caption, and
    `photo.json` an object with a caption and a label, a class number that overrides the folder's. A table
    `metadata.jsonl`, `metadata.csv` or `metadata.tsv` in any folder, as in `datasets`, names images relative to that
    folder, and is overridden by files beside the image; the account reports an unusable table. Links are followed;
    names that start with a dot are ignored.
    """

    name = "folder"
    accepts = "a folder of images"
    scheme = "folder"

    def __init__(
        self,
        root: Path,
        paths: list[str],
        beside: Collection[str] = (),
        tree: Tree | None = None,
        *,
        used: Collection[str] = IMAGE_EXTENSIONS,
    ) -> None:
        """Find the texts and tables of the images.

        Args:
            root: The folder.
            paths: The images' POSIX paths relative to it, in their final order.
            beside: The paths of texts beside them.
            tree: The other contents of the folder.
            used: The extensions of images that are not counted as skipped.
        """
        self._root = root
        self._paths = StringTable(paths)
        self._beside = StringTable(sorted(beside))
        # Looked up once here: querying the file system for each image costs several calls in each epoch.
        texts, unused = _find_texts(paths, self._beside[:])
        self._texts = np.array(texts, dtype=np.int32).reshape(-1, len(TEXTS))
        self.classes: list[str] = sorted({path.partition("/")[0] for path in paths if "/" in path})
        self._labels = {name: label for label, name in enumerate(self.classes)}
        self._account = Account(kind=self.name, images=len(paths), classes=[valid_text(name) for name in self.classes])
        self._rows: dict[str, tuple[int | None, str | None]] = {}
        if tree is not None:
            tree.describe(self._account, used=used)
            self._read_tables([name for name in tree.files(*TABLES) if name.rpartition("/")[2] in METADATA], set(paths))
        tables = set() if tree is None else set(tree.other_tables(read=METADATA))
        for name in (name for name in unused if name not in tables):
            self._account.add_unmatched(f".{extension(name)} files", [name])
        self._describe(paths)

    @classmethod
    def open(cls, location: str, tree: Tree | None = None) -> FolderSource | None:
        """See `Source.open`."""
        path = Path(location)
        if path.is_file() and extension(path.name) in (*IMAGE_EXTENSIONS, *ARRAY_EXTENSIONS):
            stems = (path.stem, path.name)
            names = (f"{stem}.{ending}" for stem in stems for text in TEXTS for ending in (text.upper(), text))
            return cls(path.parent, [path.name], [name for name in names if (path.parent / name).is_file()])
        if not path.is_dir():
            return None
        tree = tree or Tree(path)
        paths = tree.files(*IMAGE_EXTENSIONS)
        if not paths and not tree.files("tar", "parquet"):
            paths = tree.files(*ARRAY_EXTENSIONS)
        if not paths:
            return None
        used = (*IMAGE_EXTENSIONS, *(ending for ending in ARRAY_EXTENSIONS if extension(paths[0]) in ARRAY_EXTENSIONS))
        return cls(path, paths, tree.files(*TEXTS), tree, used=used)

    def _read_tables(self, tables: list[str], paths: set[str]) -> None:
        """Return the rows of metadata tables by the image's path; an unusable table or line affects only itself."""
        for table in tables:
            folder = table.rpartition("/")[0]
            try:
                found = read_table(self._root / table, CAPTION_NAMES[0])
            except BadText as error:
                self._add_unusable("metadata tables", f"{table}: {error}")
                continue
            for problem in found.problems:
                self._add_unusable(f"lines of {table}", problem)
            if lacking := found.lacks((*CAPTION_NAMES, *LABEL_NAMES)):
                self._add_unusable("metadata tables", f"{table}: {lacking}")
                continue
            for name, values in found.entries:
                path = f"{folder}/{name}" if folder else name
                if path not in paths:
                    self._account.add_unmatched(table, [name])
                    continue
                row = Annotations(*self._rows.get(path, (None, None)))
                row.add_values(table, values)
                self._rows[path] = row.label, row.caption
                for note in row.notes:
                    self._add_unusable(f"values of {table}", f"{name}: {note}")

    def _add_unusable(self, what: str, name: str) -> None:
        self._account.unusable.setdefault(valid_text(what), Group()).add(name)

    def _describe(self, paths: list[str]) -> None:
        """Count the origins of captions and labels."""
        for number, ending in enumerate(TEXTS):
            if count := int((self._texts[:, number] >= 0).sum()):
                self._account.captions[f".{ending} beside the image"] = count
                if ending == "json":
                    self._account.labels[".json beside the image"] = count
        for number, where in enumerate((self._account.labels, self._account.captions)):
            if count := sum(row[number] is not None for row in self._rows.values()):
                where["metadata tables"] = count
        if self.classes:
            self._account.labels["class folders"] = sum("/" in path for path in paths)

    def account(self) -> Account:
        """See `Source.account`."""
        return copy.deepcopy(self._account)

    def with_classes(self, classes: Sequence[str], origin: str) -> FolderSource:
        """See `Source.with_classes`."""
        found = copy.copy(self)
        numbers = numbered([valid_text(name) for name in self.classes], classes, origin)
        found._labels = dict(zip(self.classes, numbers, strict=True))
        found._account = self.account()
        found._account.classes = list(classes)
        return found

    def __len__(self) -> int:
        return len(self._paths)

    def key(self, index: int) -> str:
        """Return the path relative to the root, with forward slashes."""
        return valid_text(self._paths[index])

    def bytes_of(self, index: int) -> int | None:
        """Return the size in the file system; None if it is unavailable."""
        try:
            return (self._root / self._paths[index]).stat().st_size
        except OSError:
            return None

    def open_image(self, index: int) -> BinaryIO:
        """See `Source.open_image`."""
        return open_regular(self._root / self._paths[index])

    def __getitem__(self, index: int) -> RawImage:
        path = self._paths[index]
        data = read_regular(self._root / path)
        return self.annotated(index, valid_text(path), data)

    def annotated(self, index: int, key: str, data: bytes) -> RawImage:
        """Return an image of file `index` with the file's label and caption."""
        path = self._paths[index]
        label, caption = self._rows.get(path, (None, None))
        if label is None and "/" in path:
            label = self._labels[path.partition("/")[0]]
        found = Annotations(label, caption)
        for ending, text in zip(reversed(TEXTS), reversed(self._texts[index].tolist()), strict=True):
            if text >= 0:
                name = self._beside[text]
                add = found.add_object if ending == "json" else found.add_text
                add(valid_text(name.rpartition("/")[2]), partial(read_regular, self._root / name))
        return RawImage(key, data, found.label, found.caption, found.notes)


def _find_texts(paths: list[str], beside: list[str]) -> tuple[list[list[int]], list[str]]:
    """Return for each image the positions of its texts in `beside`, -1 for none; and the texts without an image."""
    places: dict[str, dict[str, int]] = {ending: {} for ending in TEXTS}
    for number, name in enumerate(beside):
        stem, _, ending = name.rpartition(".")
        places[ending.lower()][stem] = number
    texts = []
    used: set[int] = set()
    for path in paths:
        stem = path.rpartition(".")[0]
        texts.append([places[ending].get(stem, places[ending].get(path, -1)) for ending in TEXTS])
        used.update(texts[-1])
    return texts, [name for number, name in enumerate(beside) if number not in used]
