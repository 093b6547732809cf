"""The nearest existing name or path to one that does not exist, for messages."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

_MOST_NAMES = 5000
"""Names of a folder that are compared: a folder of images may have millions, a comparison takes microseconds."""


def nearest_name(name: str, names: Iterable[str]) -> str | None:
    """Return the name that is most like `name`; case, hyphens and underscores do not matter. None if none is like it.

    A name of which `name` is the beginning counts as like it.
    """
    known = {_plain(other): other for other in names}
    near = difflib.get_close_matches(_plain(name), known, n=1)
    near = near or sorted((other for other in known if len(name) > 1 and other.startswith(_plain(name))), key=len)[:1]
    return known[near[0]] if near else None


def nearest_path(path: str | Path) -> Path | None:
    """Return the existing path that is most like `path`, part by part; None where a part is like nothing there.

    Only folders along the path are listed.
    """
    found = Path(Path(path).anchor)
    for part in Path(path).parts[1 if found.is_absolute() else 0 :]:
        if (found / part).exists():
            found /= part
            continue
        if not found.is_dir() or not os.access(found, os.R_OK | os.X_OK):
            return None
        there = sorted(item.name for item in islice(found.iterdir(), _MOST_NAMES) if not item.name.startswith("."))
        if (near := nearest_name(part, there)) is None:
            return None
        found /= near
    return found


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
