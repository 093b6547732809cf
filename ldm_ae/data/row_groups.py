"""Reading of single rows of Parquet files, by row groups that are kept for the next rows."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ldm_ae.core.errors import UserError, reason

_WHOLE = 64 * 2**20
"""Maximum bytes of a row group that is read as a whole. A larger one is read in runs of rows."""
_KEPT = 256 * 2**20
"""Bytes of whole row groups that a process keeps."""
_RUN = 64
"""Rows of a run, fewer if they are large."""


@contextmanager
def open_parquet(file: Path) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file for the duration of the context.

    Raises:
        UserError: The file is not a Parquet file, or cannot be read.
    """
    try:
        if not file.is_file():
            raise UserError(f"{file} is not a regular file")
        opened = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} cannot be read as Parquet: {reason(error)}") from error
    with opened:
        yield opened


class RowGroups:
    """Reader of rows. Its cache belongs to this process; a copy in another process, or a pickle, starts empty."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._owner = os.getpid()
        self._whole: OrderedDict[tuple[Path, int], pa.Table] = OrderedDict()
        self._run: _Run | None = None

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return RowGroups, ()

    def find(self, file: Path, group: int, row: int, columns: list[str]) -> tuple[pa.Table, int]:
        """Return a table with these columns that holds a row of a row group, and the row's position in the table.

        Raises:
            pa.ArrowException, OSError, UserError: The file cannot be read.
            IndexError: The file no longer has the row.
        """
        if self._owner != os.getpid():
            self._forget()
        place = file, group
        if place in self._whole:
            self._whole.move_to_end(place)
            return self._whole[place], row
        if self._run is None or self._run.place != place or row < self._run.first:
            self._run = None
            with open_parquet(file) as opened:
                rows, size = opened.metadata.row_group(group).num_rows, _bytes(opened, group, columns)
                if size <= _WHOLE:
                    self._whole[place] = opened.read_row_group(group, columns=columns, use_threads=False)
                    while len(self._whole) > 1 and sum(table.nbytes for table in self._whole.values()) > _KEPT:
                        self._whole.popitem(last=False)
                    return self._whole[place], row
            self._run = _Run(file, group, columns, max(1, min(_RUN, _WHOLE * rows // size)))
        return self._run.find(row)


class _Run:
    """Some rows of a large row group, and a reader of the rows that follow."""

    def __init__(self, file: Path, group: int, columns: list[str], rows: int) -> None:
        self.place = file, group
        self.first = 0
        """Index of the first row of the run."""
        # With a buffer, pages are read on demand, not the column's whole part of the group at once.
        opened = pq.ParquetFile(file, buffer_size=2**20, pre_buffer=False)
        self._rest = opened.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False)
        self._table = pa.Table.from_batches([next(self._rest)])

    def find(self, row: int) -> tuple[pa.Table, int]:
        """Advance to the run that holds the row."""
        while row - self.first >= len(self._table):
            self.first += len(self._table)
            batch = next(self._rest, None)
            if batch is None:
                raise IndexError(f"there is no row {row}")
            self._table = pa.Table.from_batches([batch])
        return self._table, row - self.first


def _bytes(opened: pq.ParquetFile, group: int, columns: list[str]) -> int:
    """Return the uncompressed bytes of these columns of a group."""
    found = opened.metadata.row_group(group)
    parts = (found.column(i) for i in range(found.num_columns))
    return sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] in columns)
