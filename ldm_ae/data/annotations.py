"""Labels and captions from a file of their own, whatever the images lie in."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ldm_ae.data.sources.base import RawImage, Source, Wrapped
from ldm_ae.errors import UserError

_NAMES = ("key", "file_name")
_Value = TypeVar("_Value", int, str)


class Annotated(Wrapped):
    """A source whose labels, or captions, are those of a file; an image that the file does not name has none.

    The file is `.json`, an object `{"cats/1.png": 3, ...}` or a list of objects, or `.csv` with a first line of column
    names. Objects and lines have `key` or `file_name`, and `label` (a class number) or `caption`. An image is looked
    up by its key, then by its file name.

    Args:
        source: The images.
        labels: The file of labels, or None to leave the source's own.
        captions: The same for captions.

    Raises:
        UserError: a file cannot be read, has something else in it, or names none of the images.
    """

    name = "annotated"

    def __init__(self, source: Source, *, labels: str | Path | None = None, captions: str | Path | None = None):
        super().__init__(source)
        self._labels = None if labels is None else _read(Path(labels), "label", _label)
        self._captions = None if captions is None else _read(Path(captions), "caption", _caption)
        if self._labels is not None:
            self._check(labels, self._labels)
        if self._captions is not None:
            self._check(captions, self._captions)

    def _check(self, path: object, values: dict[str, _Value]) -> None:
        if not any(_find(values, self.key(i)) is not None for i in range(len(self))):
            raise UserError(f"{path} names none of the images; it has {next(iter(values), 'nothing')}, the first image "
                            f"is {self.key(0)}")  # fmt: skip

    def __getitem__(self, index: int) -> RawImage:
        raw = self._source[index]
        if self._labels is not None:
            raw = raw._replace(label=_find(self._labels, raw.key))
        if self._captions is not None:
            raw = raw._replace(caption=_find(self._captions, raw.key))
        return raw


def _find(values: dict[str, _Value], key: str) -> _Value | None:
    return values[key] if key in values else values.get(key.rpartition("/")[2])


def _read(path: Path, column: str, check: Callable[[Any], _Value]) -> dict[str, _Value]:
    values: dict[str, _Value] = {}
    try:
        if path.suffix.lower() not in (".json", ".csv"):
            raise ValueError("it must end in .json or .csv")
        for key, value in _entries(path, column):
            if key in values and values[key] != check(value):
                raise ValueError(f"it has two values for {key}")
            values[key] = check(value)
    except RecursionError:
        raise UserError(f"{path}: it is nested too deeply") from None
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    return values


def _entries(path: Path, column: str) -> list[tuple[str, Any]]:
    """(key, value) as they stand in the file."""
    if path.suffix.lower() == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            found: Any = list(csv.DictReader(file))
    else:
        found = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(found, dict):
        return list(found.items())
    if not isinstance(found, list):
        raise ValueError("it holds neither an object nor a list")
    entries = []
    for number, entry in enumerate(found, start=1):
        name = next((name for name in _NAMES if isinstance(entry, dict) and isinstance(entry.get(name), str)), None)
        if name is None or column not in entry:
            raise ValueError(f"entry {number} has no {' or '.join(_NAMES)}, or no {column}")
        entries.append((entry[name], entry[column]))
    return entries


def _label(value: Any) -> int:
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{str(value)[:40]!r} is no class number")
    return value


def _caption(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:40]!r} is no caption")
    return value
