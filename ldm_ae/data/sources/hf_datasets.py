"""Data sets of the `datasets` library: saved folders, and names on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm_ae.core.errors import UserError
from ldm_ae.data.account import Account
from ldm_ae.data.sources.interface import ColumnSource, RawImage, read_regular, valid_text
from ldm_ae.data.sources.parquet import Columns, class_names, features_of, find_columns
from ldm_ae.data.sources.tree import Tree, is_saved
from ldm_ae.data.texts import Annotations
from ldm_ae.images.decoding import BadImage

if TYPE_CHECKING:
    import datasets


class HFDatasetsSource(ColumnSource):
    """Rows of one split, with images as the encoded bytes that the data set holds.

    Columns are selected as in Parquet files, and the key is the split and the row number. Downloads and conversions of
    `datasets` are in its cache, which the account names.
    """

    name = "hf_datasets"
    accepts = "a folder saved by `datasets` or hf:owner/name[:split]"
    scheme = "saved"

    def __init__(self, data: datasets.Dataset, location: str, tree: Tree | None = None) -> None:
        """Find the columns of the split.

        Args:
            data: One split.
            location: Its name in messages.
            tree: The contents of its folder, if it is one.
        """
        import datasets

        schema = data.features.arrow_schema
        self._columns = find_columns(schema, features_of(schema), location)
        self.classes = class_names(features_of(schema), self._columns.label)
        if len(data) == 0:
            raise UserError(f"{location} has no rows")
        skipped = [name for name in schema.names if name not in self._columns.used]
        self._account = _describe(data, self._columns, skipped, self.classes)
        if tree is not None:
            tree.describe(self._account, used=())
        self._data = data.select_columns(self._columns.used).cast_column(
            self._columns.image, datasets.Image(decode=False)
        )
        self._split = "" if data.split is None else f"{data.split}/"

    @classmethod
    def open(cls, location: str, tree: Tree | None = None) -> HFDatasetsSource | None:
        """See `Source.open`."""
        name, _, split = location.removeprefix("hf:").partition(":")
        if location.startswith("hf:") and (is_saved(Path(name)) or not Path(name).exists()):
            return cls(_one_split(_load(name, location), split, location, name), location)
        if is_saved(Path(location)):
            return cls(_one_split(_load(location, location), "", location, location), location, tree)
        return None

    def __len__(self) -> int:
        return len(self._data)

    def key(self, index: int) -> str:
        """Return split and row."""
        return f"{self._split}{index:08d}"

    def __getitem__(self, index: int) -> RawImage:
        row = self._data[index]
        image = row[self._columns.image] or {}
        data, path = image.get("bytes"), image.get("path")
        if data is None:
            if path is None:
                raise BadImage("this row has no image")
            data = read_regular(path)
        found = Annotations()
        found.add_columns(self._columns.captions, self._columns.label, row.__getitem__)
        return RawImage(self.key(index), data, self._numbered(found.label), found.caption, found.notes)


def _describe(data: datasets.Dataset, columns: Columns, skipped: list[str], classes: list[str]) -> Account:
    account = Account(kind=HFDatasetsSource.name, images=len(data), classes=list(classes))
    # If the data set selects some of the rows of its table, all of them may have a value.
    nulls = {name: data.data.column(name).null_count if data.data.num_rows == len(data) else 0 for name in columns.used}
    if columns.label:
        account.labels = {f"column {columns.label}": len(data) - nulls[columns.label]}
    account.captions = {f"column {name}": len(data) - nulls[name] for name in columns.captions}
    if skipped:
        account.notes.append(f"columns that are not used: {valid_text(', '.join(skipped))}")
    if data.cache_files:
        folder = Path(data.cache_files[0]["filename"]).parent
        account.notes.append(f"read from {valid_text(str(folder))}, a copy that the library datasets keeps")
    return account


def _load(name: str, location: str) -> Any:
    """Return a `Dataset`, or a dictionary of them by split."""
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{location} needs the package datasets, which is missing; pip install 'ldm_ae[datasets]'"
        ) from None
    path = Path(name)
    if not path.exists() and name.count("/") > 1:
        raise UserError(f"no such folder or file: {name}; a data set on the hub is named hf:owner/name[:split]")
    try:
        return datasets.load_from_disk(name) if is_saved(path) else datasets.load_dataset(name)
    except Exception as error:  # the library raises many kinds; each means that there is no data set
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        if path.exists():
            raise UserError(f"{name} cannot be read as a data set: {reason}") from error
        raise UserError(
            f"the data set '{name}' could not be downloaded from the Hugging Face hub: {reason}; "
            "a folder of images, .tar or .parquet files works without a network"
        ) from error


def _one_split(loaded: Any, split: str, location: str, name: str) -> datasets.Dataset:
    if not isinstance(loaded, dict):
        if split and str(loaded.split) != split:
            raise UserError(f"{name} has no splits, so it has no '{split}'; remove the split")
        return loaded
    if not split and len(loaded) == 1:
        return next(iter(loaded.values()))
    if split not in loaded:
        wanted = f"has no split '{split}'" if split else "has several splits"
        raise UserError(f"{location} {wanted}; name one: " + ", ".join(f"hf:{name}:{known}" for known in loaded))
    return loaded[split]
