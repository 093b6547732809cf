"""Tables of captions and labels: JSON, JSON lines, or delimited text, one entry per image."""

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
"""Columns that name the image; the first one present is used."""
SUFFIXES = (".json", ".jsonl", ".csv", ".tsv")
_DELIMITERS = ",;\t|"


class Entry(NamedTuple):
    """The entry of a table for one image."""

    name: str
    """Name of the image."""
    values: dict[str, Any]
    """Values by column."""


class Table(NamedTuple):
    """The content of a file of captions or labels."""

    entries: list[Entry]
    """Entries in the order of the file."""
    problems: list[str]
    """Lines, or entries of a list, that cannot be used, each with the reason."""

    def lacks(self, columns: tuple[str, ...]) -> str | None:
        """Return why no entry is usable if none has a value in these columns; otherwise, or without entries, None."""
        if not self.entries or any(named(entry.values, columns)[1] is not None for entry in self.entries):
            return None
        found = dict.fromkeys(str(column) for entry in self.entries for column in entry.values)
        return f"no entry has a {columns[0]}; its columns are {printable(', '.join(found), 80)}"


def read_table(path: Path, column: str) -> Table:
    """Read the entries of a file.

    An unusable line affects only itself. A row with more cells than the header is unusable: its text has an unquoted
    delimiter, and would be cut. So is one with text behind a quoted cell, which would lose its quotes.

    Args:
        path: `.json`, an object from names to values, or a list of objects; `.jsonl`, an object a line; `.csv` or
            `.tsv` with a first line of column names and any delimiter (comma, semicolon, tab or `|`).
        column: Column name of an object's plain values.

    Raises:
        BadText: The file cannot be read, or has other content.
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
    """Yield the location of each entry of a JSON value, and the entry."""
    if isinstance(found, dict):
        found = [{NAMES[0]: name, column: value} for name, value in found.items()]
    if not isinstance(found, list):
        raise BadText("it holds neither an object nor a list")
    for number, entry in enumerate(found, start=1):
        yield f"entry {number}", entry


def _lines(text: str) -> Iterator[tuple[str, Any]]:
    """Yield the location and entry of each line, which is a JSON value; or the reason if a line cannot be used."""
    for number, line in enumerate(text.encode().splitlines(), start=1):
        if line.strip():
            try:
                entry = decode_json(line)
            except BadText as error:
                entry = error
            yield f"line {number}", entry


def _rows(text: str) -> Iterator[tuple[str, Any]]:
    """Yield the location and entry of each row of delimited text; or the reason if a row cannot be used."""
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
    """Return the fault of one row's quotes, which reading would hide by changing the text; None if there is none."""
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
    """Return the delimiter with which the header has a column that names images."""
    for delimiter in _DELIMITERS:
        try:
            names = next(csv.reader([header], delimiter=delimiter), [])
        except csv.Error as error:  # such as a field of more than 131,072 characters
            raise BadText(f"line 1: {error}") from error
        if {name.strip().lower() for name in names} & {*NAMES}:
            return delimiter
    raise BadText(f"no column is named {' or '.join(NAMES[:2])}; its first line is {printable(header, 80)!r}")


def _named(entry: Any) -> Entry:
    if isinstance(entry, BadText):
        raise entry
    values: dict[str, Any] = entry if isinstance(entry, dict) else {}
    keys = (spelled(values, name) for name in NAMES)
    name = next((values[key] for key in keys if key is not None and isinstance(values[key], str)), None)
    if name is None:
        raise BadText(f"it has no {' or '.join(NAMES[:2])}: {printable(json.dumps(entry, default=str), 80)}")
    return Entry(name.removeprefix("./"), values)
