"""Tables of captions and labels: JSON, JSON lines, or text with a delimiter, one entry an image."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ldm_ae.core.errors import printable
from ldm_ae.data.texts import BadText, decode_json, decode_text, named, spelled

NAMES = ("key", "file_name", "filename", "file", "image", "path", "image_path", "img")
"""Columns that name the image, the first that is there."""
SUFFIXES = (".json", ".jsonl", ".csv", ".tsv")
_DELIMITERS = ",;\t|"


class Entry(NamedTuple):
    """What a table says of one image."""

    name: str
    """Of the image."""
    values: dict[str, Any]
    """By column."""


class Table(NamedTuple):
    """What a file of captions or labels holds."""

    entries: list[Entry]
    """In the order of the file."""
    problems: list[str]
    """Lines, or entries of a list, that cannot be used, each with the reason."""

    def lacks(self, columns: tuple[str, ...]) -> str | None:
        """The reason why no entry says anything, if none has a value in any of these columns; None for no entries."""
        if not self.entries or any(named(entry.values, columns)[1] is not None for entry in self.entries):
            return None
        found = dict.fromkeys(str(column) for entry in self.entries for column in entry.values)
        return f"no entry has a {columns[0]}; its columns are {printable(', '.join(found), 80)}"


def read_table(path: Path, column: str) -> Table:
    """The entries of a file.

    A line that cannot be used costs itself alone. A row with more cells than the header has is one: its text has a
    delimiter and no quotes, and would be cut. So is one with text behind a quoted cell, which would lose its quotes.

    Args:
        path: `.json`, an object from names to values, or a list of objects; `.jsonl`, an object a line; `.csv` or
            `.tsv` with a first line of column names, whatever the delimiter (comma, semicolon, tab or `|`).
        column: What an object's plain values are called.

    Raises:
        BadText: the file cannot be read, or has something else in it.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise BadText("it must end in " + ", ".join(SUFFIXES))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadText(error.strerror or str(error)) from error
    if suffix == ".json":
        found = _entries(decode_json(data), column)
    else:
        found = _lines(decode_text(data)) if suffix == ".jsonl" else _rows(decode_text(data))
    table = Table([], [])
    for place, item in found:
        try:
            table.entries.append(_named(item))
        except BadText as error:
            table.problems.append(f"{place}: {error}")
    return table


def _entries(found: Any, column: str) -> Iterator[tuple[str, Any]]:
    """Where each entry of a JSON value is, and the entry."""
    if isinstance(found, dict):
        found = [{NAMES[0]: name, column: value} for name, value in found.items()]
    if not isinstance(found, list):
        raise BadText("it holds neither an object nor a list")
    for number, entry in enumerate(found, start=1):
        yield f"entry {number}", entry


def _lines(text: str) -> Iterator[tuple[str, Any]]:
    """The same of a JSON value a line; the reason where a line cannot be used."""
    for number, line in enumerate(text.encode().splitlines(), start=1):
        if line.strip():
            try:
                entry = decode_json(line)
            except BadText as error:
                entry = error
            yield f"line {number}", entry


def _rows(text: str) -> Iterator[tuple[str, Any]]:
    """The same of text with a delimiter; the reason where a row cannot be used."""
    lines = list(io.StringIO(text, newline=""))  # a line may end in a carriage return alone
    delimiter = _delimiter(lines[0].rstrip("\r\n") if lines else "")
    rows = csv.reader(lines, delimiter=delimiter)
    header: list[str] = []
    number = 1
    try:
        for row in rows:
            several = f"lines {number} to {rows.line_num}" if rows.line_num > number else ""
            if wrong := _wrong_quotes(lines[number - 1 : rows.line_num], delimiter):
                if not header:
                    raise BadText(f"{several or f'line {number}'}, the names of the columns: {wrong}")
                yield several or f"line {number}", BadText(wrong)
            elif not header:
                header = [name.strip().lower() for name in row]
            elif len(row) > len(header):
                yield (
                    f"line {number}",
                    BadText(
                        f"it has more cells than columns, {len(row)} and {len(header)}; quote the text: "
                        f"{printable(delimiter.join(row), 80)}"
                    ),
                )
            elif row:
                yield f"line {number}", dict(zip(header, row, strict=False))
            number = rows.line_num + 1
    except csv.Error as error:
        raise BadText(f"line {number}: {error}") from error


def _wrong_quotes(lines: list[str], delimiter: str) -> str | None:
    """What is wrong with the quotes of one row, which reading it would hide by changing the text; None for nothing."""
    if not any('"' in line for line in lines):
        return None
    try:
        next(csv.reader(lines, delimiter=delimiter, strict=True))
    except csv.Error as error:
        if len(lines) > 1 or "unexpected end" in str(error):
            return "a quote that begins there is not closed"
        return f"text follows a quoted cell; write quotes inside of it twice: {printable(lines[0].strip(), 80)}"
    return None


def _delimiter(header: str) -> str:
    """The delimiter by which the header has a column that names images."""
    for delimiter in _DELIMITERS:
        try:
            names = next(csv.reader([header], delimiter=delimiter), [])
        except csv.Error as error:  # such as a field of more than 131,072 characters
            raise BadText(f"line 1: {error}") from error
        if {name.strip().lower() for name in names} & {*NAMES}:
            return delimiter
    raise BadText(f"no column is called {' or '.join(NAMES[:2])}; its first line is {printable(header, 80)!r}")


def _named(entry: Any) -> Entry:
    if isinstance(entry, BadText):
        raise entry
    values: dict[str, Any] = entry if isinstance(entry, dict) else {}
    keys = (spelled(values, name) for name in NAMES)
    name = next((values[key] for key in keys if key is not None and isinstance(values[key], str)), None)
    if name is None:
        raise BadText(f"it has no {' or '.join(NAMES[:2])}: {printable(json.dumps(entry, default=str), 80)}")
    return Entry(name.removeprefix("./"), values)
