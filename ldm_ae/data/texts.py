"""Captions and labels from the files of other programs: valid values, or the reason why one cannot be used.

A value is checked where it is read. A caption with half of a surrogate pair, which JSON's escapes allow, can be neither
printed nor written to the index, and would be noticed only after everything has been encoded.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from ldm_ae.core.errors import printable

_WHOLE_NUMBER = re.compile(r"\s*(\d{1,19})(?:\.0*)?\s*", re.ASCII)
CAPTION_NAMES = ("caption", "text", "txt", "prompt")
"""Keys and columns that hold captions; for each image the first with a value is used."""
LABEL_NAMES = ("label", "labels", "cls")
"""Keys and columns that hold class numbers; the first one present is used."""
LABEL_LIMIT = 2**63
"""Upper limit (exclusive) of labels, which are stored as int64."""
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}  # fmt: skip


class BadText(ValueError):  # noqa: N818 - a fact about the data that is recorded, as BadImage is
    """A caption or label that cannot be used; the text is a short reason."""


def decode_text(data: bytes) -> str:
    """Decode UTF-8 with or without a byte order mark.

    Raises:
        BadText: The data have another encoding.
    """
    name = next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)
    if name is not None:
        raise BadText(f"it is {name}, not UTF-8; save it as UTF-8")
    try:
        # Not "utf-8-sig", whose errors count from behind the mark. Editors that add a mark to a mark leave several.
        return data.decode("utf-8").lstrip("\ufeff")
    except UnicodeDecodeError as error:
        raise BadText(f"it is not UTF-8 (byte 0x{data[error.start]:02x} at {error.start}); save it as UTF-8") from None


def decode_json(data: bytes) -> Any:
    """Decode a JSON value in UTF-8.

    Raises:
        BadText: The data are not JSON, or have another encoding.
    """
    try:
        return json.loads(decode_text(data))
    except BadText:
        raise
    except ValueError as error:
        raise BadText(f"it is not JSON: {printable(error)}") from None
    except RecursionError:
        raise BadText("it is nested too deeply") from None


def read_caption(value: Any) -> str | None:
    """Return a caption, the first one of a list of captions, or None for null.

    Raises:
        BadText: The value is not text, or is text that is not valid Unicode.
    """
    if isinstance(value, (list, tuple)):
        value = value[0] if value else None
    if value is None:
        return None
    if not isinstance(value, str):
        raise BadText(f"{printable(value, 40)!r} is not a caption")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        raise BadText(f"it has an invalid character, the lone surrogate U+{code:04X} at {error.start}") from None
    return value


def read_label(value: Any) -> int | None:
    """Return a class number, or None for null, NaN and numbers below zero, which mean that there is none.

    pandas writes a column of numbers with missing values as floats: 3.0 is 3.

    Raises:
        BadText: The value is not an integer below 2^63.
    """
    if isinstance(value, str) and (match := _WHOLE_NUMBER.fullmatch(value)):
        value = int(match[1])
    if isinstance(value, float):
        if value != value:
            return None
        value = int(value) if value.is_integer() else value
    if value is None or (type(value) is int and value < 0):
        return None
    if type(value) is not int or value >= LABEL_LIMIT:
        raise BadText(f"{printable(value, 40)!r} is not a class number from 0 to 2^63 - 1")
    return value


def check_names(value: Any) -> list[str]:
    """Return a list of distinct names that are text.

    Raises:
        BadText: The value is anything else.
    """
    if not isinstance(value, list) or not value or not all(isinstance(name, str) and name for name in value):
        raise BadText("it is not a list of names")
    if len(set(value)) < len(value):
        raise BadText("a name is duplicated")
    return [str(read_caption(name)) for name in value]


def is_empty(value: Any) -> bool:
    """Return whether a value is empty: null, empty text, a list that begins with either, or an empty list."""
    if isinstance(value, (list, tuple)):
        value = value[0] if value else None
    return value is None or value == ""


def named(values: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, Any]:
    """Return the first of these keys, in any case, that has a value, with the value; the first name and None if none
    has one.
    """
    keys = [key for name in names if (key := spelled(values, name)) is not None]
    return next(((key, values[key]) for key in keys if not is_empty(values[key])), (names[0], None))


def spelled(keys: Collection[str], name: str) -> str | None:
    """Return the spelling of `name` (in lower case) among some keys; None if it is absent or has several spellings."""
    if name in keys:
        return name
    found = [key for key in keys if key.lower() == name]
    return found[0] if len(found) == 1 else None


class Annotations:
    """The label and caption of one image, from the files beside it.

    An unusable value affects only itself: the reason is in `notes`, and the image stays. Values that are added later
    override earlier ones.

    Args:
        label: Label of the image, unless an added value overrides it.
        caption: Caption of the image, unless an added value overrides it.
    """

    def __init__(self, label: int | None = None, caption: str | None = None) -> None:
        self.label = label
        self.caption = caption
        self._notes: list[str] = []

    @property
    def notes(self) -> tuple[str, ...]:
        """Reasons why an existing caption or label is not used."""
        return tuple(self._notes)

    def add_text(self, name: str, read: Callable[[], bytes]) -> None:
        """Add the caption in a text file called `name`."""
        with self._noting(name):
            self._add_caption(decode_text(read()).strip())

    def add_object(self, name: str, read: Callable[[], bytes]) -> None:
        """Add the values of a JSON object in a file called `name`."""
        with self._noting(name):
            content = decode_json(read())
            if isinstance(content, dict):
                self.add_values(name, content)

    def add_values(self, name: str, values: Mapping[str, Any]) -> None:
        """Add the values of the keys `CAPTION_NAMES` and `LABEL_NAMES`."""
        for kind, names in (("caption", CAPTION_NAMES), ("label", LABEL_NAMES)):
            key, value = named(values, names)
            if value is not None:
                self.add_value(kind, f"{name} {key}", partial(values.get, key))

    def add_columns(self, captions: Sequence[str], label: str | None, read: Callable[[str], Any]) -> None:
        """Add the result of `read` for the first of the columns `captions` that has a value, and for `label`."""
        for column in captions:
            self.add_value("caption", f"column {column}", partial(read, column))
            if self.caption or self._notes:
                break
        if label is not None:
            self.add_value("label", f"column {label}", partial(read, label))

    def add_value(self, kind: str, name: str, read: Callable[[], Any]) -> None:
        """Add a `caption` or a `label`, called `name` in messages."""
        with self._noting(name):
            if kind == "caption":
                self._add_caption(read_caption(read()))
            elif (label := read_label(read())) is not None:
                self.label = label

    def _add_caption(self, caption: str | None) -> None:
        self.caption = self.caption if caption is None else caption

    @contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        try:
            yield
        except BadText as error:
            self._notes.append(f"{name}: {error}")
        except UnicodeDecodeError as error:  # raised by pyarrow for a string that is not UTF-8
            self._notes.append(f"{name}: it is not UTF-8: {error.reason}")
        except OSError as error:
            self._notes.append(f"{name}: it cannot be read: {error.strerror or error}")
