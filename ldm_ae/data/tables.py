"""Tables of captions and labels: JSON, JSON lines, or text with a delimiter, one entry an image."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from ldm_ae.data.texts import BadText, decode_json, decode_text
from ldm_ae.errors import UserError, printable

NAMES = ("key", "file_name", "filename", "file", "image", "path", "image_path", "img")
"""Columns that name the image, the first that is there."""
SUFFIXES = (".json", ".jsonl", ".csv", ".tsv")
_DELIMITERS = ",;\t|"


def read_table(path: Path, columns: tuple[str, ...]) -> list[tuple[str, dict[str, Any]]]:
    """(name of the image, its values by column) of each entry, in the order of the file.

    Args:
        path: `.json`, an object from names to values, or a list of objects; `.jsonl`, an object a line; `.csv` or
            `.tsv` with a first line of column names, whatever the delimiter (comma, semicolon, tab or `|`).
        columns: Of these each entry must have one; an object's plain value gets the name of the first.

    Raises:
        UserError: the file cannot be read, or an entry has no name or none of the columns.
    """
    try:
        if path.suffix.lower() not in SUFFIXES:
            raise BadText("it must end in " + ", ".join(SUFFIXES))
        entries = _entries(path.suffix.lower(), path.read_bytes(), columns[0])
        return [_named(number, entry, columns) for number, entry in enumerate(entries, start=1)]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except (BadText, csv.Error) as error:
        raise UserError(f"{path}: {error}") from error


def _entries(suffix: str, data: bytes, column: str) -> list[Any]:
    if suffix == ".jsonl":
        return [decode_json(line) for line in decode_text(data).encode().splitlines() if line.strip()]
    if suffix == ".json":
        found = decode_json(data)
        if isinstance(found, dict):
            return [{NAMES[0]: name, column: value} for name, value in found.items()]
        if not isinstance(found, list):
            raise BadText("it holds neither an object nor a list")
        return found
    text = decode_text(data)
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=_delimiter(text.partition("\n")[0]))
    rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or ()]
    return list(rows)


def _delimiter(header: str) -> str:
    """The delimiter by which the header has a column that names images."""
    for delimiter in _DELIMITERS:
        if {name.strip().lower() for name in next(csv.reader([header], delimiter=delimiter), [])} & {*NAMES}:
            return delimiter
    raise BadText(f"no column is called {' or '.join(NAMES[:2])}; its first line is {printable(header, 80)!r}")


def _named(number: int, entry: Any, columns: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    values: dict[str, Any] = entry if isinstance(entry, dict) else {}
    name = next((values[name] for name in NAMES if isinstance(values.get(name), str)), None)
    if name is None or not any(column in values for column in columns):
        shown = printable(json.dumps(entry, default=str), 80)
        raise BadText(f"entry {number} has no {' or '.join(NAMES[:2])}, or no {columns[0]}: {shown}")
    return name.removeprefix("./"), values
