"""Labels and captions from a separate file, for any kind of source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ldm_ae.core.errors import UserError, printable
from ldm_ae.data.account import Account, Group
from ldm_ae.data.sources.interface import RawImage, Source, Wrapped
from ldm_ae.data.sources.tree import NOT_ANNOTATIONS
from ldm_ae.data.tables import read_table
from ldm_ae.data.texts import CAPTION_NAMES, LABEL_NAMES, BadText, named, read_caption, read_label

_Value = TypeVar("_Value", int, str)


class Annotated(Wrapped):
    """A source whose labels, or captions, come from a file; an image that the file does not name has none.

    `read_table` describes the file's formats. Entries have `key` or `file_name`, and `label` (a class number) or
    `caption`, which may be null or missing in some of them. An entry belongs to the image with that key, or else to
    the one image with that file name that no other entry names by its key. The account lists entries that belong to no
    image, and captions that are not valid.

    Args:
        source: The images.
        labels: The file of labels, or None to keep the source's own.
        captions: The file of captions, or None to keep the source's own.

    Raises:
        UserError: A file or one of its lines cannot be used, the file names none of the images, or a name matches
            several images.
    """

    name = "annotated"

    def __init__(self, source: Source, *, labels: str | Path | None = None, captions: str | Path | None = None):
        super().__init__(source)
        self._files = {"labels": printable(labels), "captions": printable(captions)}
        self._unmatched: dict[str, Group] = {}
        self._unusable: dict[str, Group] = {}
        self._labels: dict[str, int] | None = None
        self._captions: dict[str, str] | None = None
        if labels is not None:
            self._labels = self._match(Path(labels), _read(Path(labels), LABEL_NAMES, _label))
        if captions is not None:
            values = _read(Path(captions), CAPTION_NAMES, read_caption, self._unusable)
            self._captions = self._match(Path(captions), values)

    def _match(self, path: Path, values: dict[str, _Value]) -> dict[str, _Value]:
        """Return the values by the images' keys."""
        keys = [self.key(i) for i in range(len(self))]
        found = {key: values[key] for key in keys if key in values}
        candidates: dict[str, list[str]] = {}
        for key in keys:
            if key not in found and (name := key.rpartition("/")[2]) in values and name not in found:
                candidates.setdefault(name, []).append(key)
        for name, same in candidates.items():
            if len(same) > 1:
                shown = ", ".join(map(printable, same[:3])) + (f" and {len(same) - 3} more" if len(same) > 3 else "")
                raise UserError(
                    f"{path}: {len(same)} images are named {printable(name)}: {shown}; "
                    f"name each by its key, such as {printable(same[0])}"
                )
            found[same[0]] = values[name]
        matched = found.keys() | candidates.keys()
        if not found:
            first = printable(next(iter(values), "nothing"))
            raise UserError(f"{path} names none of the images; it has {first}, the first image is {printable(keys[0])}")
        for name in values:
            if name not in matched:
                self._unmatched.setdefault(printable(path), Group()).add(name)
        return found

    def account(self) -> Account:
        """Return the source's account, with the content of the files."""
        account = self._source.account()
        for path in self._files.values():
            account.remove_skipped(NOT_ANNOTATIONS, path)
        if self._labels is not None:
            account.labels, account.classes = {self._files["labels"]: len(self._labels)}, []
        if self._captions is not None:
            account.captions = {self._files["captions"]: len(self._captions)}
        account.unmatched |= self._unmatched
        account.unusable |= self._unusable
        return account

    def with_classes(self, classes: Sequence[str], origin: str) -> Source:
        """See `Source.with_classes`; labels of a file are numbers and have no names."""
        if self._labels is not None:
            raise UserError(f"{self._files['labels']} holds class numbers, so {origin} has no effect")
        return super().with_classes(classes, origin)

    def __getitem__(self, index: int) -> RawImage:
        raw = self._source[index]
        if self._labels is not None:
            raw = raw._replace(label=self._labels.get(raw.key))
        if self._captions is not None:
            raw = raw._replace(caption=self._captions.get(raw.key))
        return raw


def _read(
    path: Path,
    columns: tuple[str, ...],
    check: Callable[[Any], _Value | None],
    unusable: dict[str, Group] | None = None,
) -> dict[str, _Value]:
    """Return values by name, of entries that have one; those that `check` refuses go into `unusable` if given."""
    values: dict[str, _Value] = {}
    try:
        table = read_table(path, columns[0])
        if found := next(iter(table.problems), table.lacks(columns)):
            more = f" (and {len(table.problems) - 1} more)" if len(table.problems) > 1 else ""
            raise BadText(found + more)
    except BadText as error:
        raise UserError(f"{path}: {error}") from error
    for name, entry in table.entries:
        column, value = named(entry, columns)
        try:
            checked = check(value)
        except BadText as error:
            if unusable is None:
                raise UserError(f"{path}: {error}") from error
            unusable.setdefault(f"values of {printable(path)}", Group()).add(f"{name}: {column}: {error}")
            continue
        if checked is None:
            continue
        if values.setdefault(name, checked) != checked:
            raise UserError(f"{path}: it has two values for {printable(name)}")
    return values


def _label(value: Any) -> int | None:
    label = None if value == "" else read_label(value)
    if label is None and value not in (None, ""):
        raise BadText(f"'{printable(value, 40)}' is not a class number")
    return label
