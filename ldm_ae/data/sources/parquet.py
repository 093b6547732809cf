"""Parquet files of images, read directly: the current content of the files is encoded, not a cached copy."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ldm_ae.core.errors import UserError, reason
from ldm_ae.data.account import Account
from ldm_ae.data.row_groups import RowGroups, open_parquet
from ldm_ae.data.sources.interface import ColumnSource, RawImage, read_regular, valid_text
from ldm_ae.data.sources.tree import Tree, is_saved
from ldm_ae.data.texts import CAPTION_NAMES, LABEL_NAMES, Annotations, spelled
from ldm_ae.images.decoding import BadImage

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp")
"""Columns of encoded images; the first one present is used."""
_SHARDED = re.compile(r"data/(\w+)-\d{5}-of-\d{5}[^/]*")
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}


class Columns(NamedTuple):
    """The columns of a file that are used."""

    image: str
    label: str | None
    captions: tuple[str, ...]
    """For each row the first of these with a value is used."""

    @property
    def used(self) -> list[str]:
        return [self.image, *([] if self.label is None else [self.label]), *self.captions]


class ParquetSource(ColumnSource):
    """Rows of the Parquet files of one split, with the encoded images that they hold.

    The image is the one column that `datasets` has marked as Image (the one called "image" if there are several), or
    else a column of bytes, or of objects with `bytes`, called image, img, jpg, jpeg, png or webp. The label is an
    integer column called label, labels or cls, where a negative number means none; a column of floats has labels where
    they are integers. The caption is a column of text, or of lists of text, of which the first is used, called caption,
    text, txt or prompt; for each row the first with a value is used. The case of the names does not matter. The key is
    the split and the row number.

    The files of a folder belong to splits by their names, as in `datasets`: `data/train-00000-of-00002.parquet`, a
    folder or a file named after train, validation or test, or else all to the split train. A row group is read as a
    whole; one of about 100 images, which `datasets` writes, suits reading in any order.
    """

    name = "parquet"
    accepts = "a .parquet or a folder of them"
    scheme = "parquet"

    def __init__(self, files: Sequence[Path], split: str, location: str, tree: Tree | None = None) -> None:
        """Read the schemas of the files.

        Args:
            files: The files in their order.
            split: The prefix of the keys.
            location: The name in messages.
            tree: The other contents of the folder.

        Raises:
            UserError: A file cannot be read or has no image, or there are no rows.
        """
        self._files = list(files)
        self._split = split
        groups: list[tuple[int, int]] = []
        lengths: list[int] = []
        self._columns: list[Columns] = []
        self.classes: list[str] = []
        labels: Counter[str] = Counter()
        captions: Counter[str] = Counter()
        skipped = []
        for number, file in enumerate(self._files):
            with open_parquet(file) as opened:
                schema, features = opened.schema_arrow, features_of(opened.schema_arrow)
                columns = find_columns(schema, features, str(file))
                self._columns.append(columns)
                self.classes = self.classes or class_names(features, columns.label)
                groups += [(number, i) for i in range(opened.num_row_groups)]
                lengths += [opened.metadata.row_group(i).num_rows for i in range(opened.num_row_groups)]
                labels.update(_count_values(opened, [columns.label] if columns.label else []))
                captions.update(_count_values(opened, columns.captions))
                skipped += [name for name in schema.names if name not in columns.used]
        self._groups = np.array(groups, np.int64).reshape(-1, 2)
        self._starts = np.cumsum([0, *lengths], dtype=np.int64)
        if not self._starts[-1]:
            raise UserError(f"{location} has no rows")
        self._account = self._describe(labels, captions, sorted(set(skipped)), tree)
        self._read = RowGroups()

    @classmethod
    def open(cls, location: str, tree: Tree | None = None) -> ParquetSource | None:
        """See `Source.open`."""
        name, _, split = location.removeprefix("hf:").partition(":")
        if location.startswith("hf:") and Path(name).exists() and not is_saved(Path(name)):
            if Path(name).is_dir() and (found := cls.of_split(Path(name), split)) is not None:
                return found
            if Path(name).is_dir() or split not in ("", "train"):
                raise UserError(f"{location}: there are no Parquet files with images in {name}, or no split '{split}'")
            location = name
        path = Path(location)
        if path.is_dir():
            return cls.of_split(path, "", tree)
        if path.suffix.lower() != ".parquet":
            return None
        if not path.is_file():
            raise UserError(f"no such Parquet file: {location}")
        return cls([path], "train", location)

    @classmethod
    def of_split(cls, root: Path, split: str, tree: Tree | None = None) -> ParquetSource | None:
        """Return the files of one split below a folder; None if none of them has an image.

        Raises:
            UserError: There are several splits and none is named, or there is none of that name.
        """
        tree = tree or Tree(root)
        names = [name for name in tree.files("parquet") if _holds_images(root / name)]
        if not names:
            return None
        splits = split_files(names)
        if not split and len(splits) > 1:
            choices = ", ".join(f"hf:{root}:{name}" for name in splits)
            raise UserError(f"{root} has several splits; name one: {choices}")
        if split and split not in splits:
            choices = ", ".join(f"hf:{root}:{name}" for name in splits)
            raise UserError(f"hf:{root}:{split} has no split '{split}'; name one: {choices}")
        split = split or next(iter(splits))
        return cls([root / name for name in splits[split]], split, str(root), tree)

    def _describe(self, labels: Counter[str], captions: Counter[str], skipped: list[str], tree: Tree | None) -> Account:
        account = Account(kind=self.name, images=len(self), classes=self.classes)
        account.labels = {f"column {name}": count for name, count in labels.items()}
        account.captions = {f"column {name}": count for name, count in captions.items()}
        if skipped:
            account.notes.append(f"columns that are not used: {valid_text(', '.join(skipped))}")
        if tree is not None:
            tree.describe(account, used=("parquet",))
            used = set(self._files)
            for name in tree.files("parquet"):
                if tree.root / name not in used:
                    account.add_skipped("Parquet files without images, or of other splits", name)
        return account

    def __len__(self) -> int:
        return int(self._starts[-1])

    def key(self, index: int) -> str:
        """Return split and row."""
        return f"{self._split}/{index:08d}"

    def __getitem__(self, index: int) -> RawImage:
        if not 0 <= index < len(self):
            raise IndexError(index)
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        file, number = self._groups[group].tolist()
        columns, row = self._columns[file], index - int(self._starts[group])
        try:
            table, place = self._read.find(self._files[file], number, row, columns.used)
        except (pa.ArrowException, OSError, IndexError, KeyError, ValueError) as error:
            raise BadImage(f"row group {number} of {self._files[file]} cannot be read: {reason(error)}") from error
        found = Annotations()
        found.add_columns(columns.captions, columns.label, partial(_value, table, place))
        data, label = _image_bytes(table[columns.image], place), self._numbered(found.label)
        return RawImage(self.key(index), data, label, found.caption, found.notes)


def find_columns(schema: pa.Schema, features: Mapping[str, Any], location: str) -> Columns:
    """Return the columns that hold the images, labels and captions.

    Raises:
        UserError: No column holds images, or several do.
    """
    typed = [name for name in schema.names if features.get(name, {}).get("_type") == "Image"]
    if len(typed) > 1 and "image" not in typed:
        raise UserError(f"{location} has the image columns {', '.join(typed)}; name the one to use 'image'")
    image = "image" if "image" in typed else next(iter(typed), None)
    image = image or next((name for name in _spelled(schema, IMAGE_NAMES) if _is_encoded(schema, name)), None)
    if image is None:
        raise UserError(f"{location} has no image column; its columns are {', '.join(schema.names)}")
    label = next((name for name in _spelled(schema, LABEL_NAMES) if _is_number(_type(schema, name))), None)
    captions = tuple(name for name in _spelled(schema, CAPTION_NAMES) if _is_text(_type(schema, name)))
    return Columns(image, label, captions)


def _spelled(schema: pa.Schema, names: Sequence[str]) -> list[str]:
    """Return those of the names that are columns, with their spelling there."""
    return [column for name in names if (column := spelled(schema.names, name)) is not None]


def split_files(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the files of each split by their paths in the folder, as `datasets` assigns them.

    The order of the files of a split, and with it the numbers in the keys, also matches `datasets`.
    """
    names = [name for name in sorted(names) if not any(part.startswith("__") for part in name.split("/"))]
    sharded: dict[str, list[str]] = {}
    for name in names:
        if match := _SHARDED.fullmatch(name):
            sharded.setdefault(match[1], []).append(name)
    if sharded:
        return {
            split: sharded[split] for split in sorted(sharded, key=lambda name: ([*_SPLITS, name].index(name), name))
        }
    for by_folder in (True, False):
        found = {}
        for split, words in _SPLITS.items():
            patterns = [re.compile(pattern) for word in words for pattern in _patterns(word, by_folder=by_folder)]
            files = [name for pattern in patterns for name in names if pattern.search(name)]
            if files:
                found[split] = list(dict.fromkeys(files))
        if found:
            return found
    return {"train": names} if names else {}


def _patterns(word: str, *, by_folder: bool) -> list[str]:
    """Return patterns of paths that belong to the split of this word, in the order in which `datasets` tries them."""
    start, end = "(?:^|/)", "/" if by_folder else "[^/]*$"
    apart, any_name = "[-._ 0-9]", "[^/]*"
    if by_folder:
        names = [
            word,
            f"{word}{apart}{any_name}",
            f"{any_name}{apart}{word}",
            f"{any_name}{apart}{word}{apart}{any_name}",
        ]
    else:
        names = [f"{word}{apart}", f"{any_name}{apart}{word}{apart}"]
    return [f"{start}{name}{end}" for name in names]


def _holds_images(file: Path) -> bool:
    """Return whether it is a Parquet file with an image column; the account counts those that are not."""
    try:
        with open_parquet(file) as opened:
            find_columns(opened.schema_arrow, features_of(opened.schema_arrow), str(file))
    except UserError:
        return False
    return True


def _count_values(opened: pq.ParquetFile, names: Sequence[str]) -> dict[str, int]:
    """Return how many rows have a value in each of these columns: those that are not null, or all rows for lists, whose
    nulls a file does not count by rows, and for files without statistics.
    """
    counts = dict.fromkeys(names, opened.metadata.num_rows)
    places = {opened.schema.column(i).path: i for i in range(len(opened.schema))}
    for group in map(opened.metadata.row_group, range(opened.num_row_groups)):
        for name in names:
            statistics = group.column(places[name]).statistics if name in places else None
            if statistics is not None and statistics.has_null_count:
                counts[name] -= statistics.null_count
    return counts


def features_of(schema: pa.Schema) -> dict[str, Any]:
    """Return the features that `datasets` has written about the columns, empty if it has not."""
    try:
        found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return (
        {name: feature for name, feature in found.items() if isinstance(feature, dict)}
        if isinstance(found, dict)
        else {}
    )


def class_names(features: Mapping[str, Any], label: str | None) -> list[str]:
    """Return the names of the labels 0, 1, ..., empty if `datasets` has not written them."""
    names = features.get(label or "", {}).get("names")
    return [str(name) for name in names] if isinstance(names, list) else []


def _type(schema: pa.Schema, name: str) -> pa.DataType:
    kind = schema.field(name).type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_encoded(schema: pa.Schema, name: str) -> bool:
    kind = _type(schema, name)
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return _is_binary(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _value(table: pa.Table, place: int, column: str) -> Any:
    return table[column][place].as_py()


def _image_bytes(column: pa.ChunkedArray, place: int) -> bytes:
    value = column[place]
    if not isinstance(value, pa.StructScalar):
        data, path = value.as_py(), None
    elif value.is_valid:
        data, path = (value[name].as_py() if name in value else None for name in ("bytes", "path"))
    else:
        data, path = None, None
    if data is None and path is not None:
        data = read_regular(path)
    if not isinstance(data, bytes):
        raise BadImage("this row has no image")
    return data
