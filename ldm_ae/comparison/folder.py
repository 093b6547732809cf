"""The folder of a comparison.

compare.html  metrics.json  table.md  table.tex  figures/     the results, written last
protocol.json                                                 what all results have in common
models/NAME-HASH/                                             the finished result of each model, see `stored.py`
codecs/NAME-HASH/                                             likewise of each codec at each rate
diffusion/                                                    see `ldm_ae/training/diffusion/score.py`
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ldm_ae.core.errors import UserError
from ldm_ae.io.files import clear_leftovers, new_folder, read_json, require_new_folder, write_json
from ldm_ae.io.locks import LOCK, only_writer

PROTOCOL, MODELS, CODECS, DIFFUSION, FIGURES = "protocol.json", "models", "codecs", "diffusion", "figures"
PAGE, METRICS, MARKDOWN, LATEX = "compare.html", "metrics.json", "table.md", "table.tex"
IMAGES = ".images"
"""The decoded images, while the models are evaluated."""
OWN_FILES = (PAGE, METRICS, MARKDOWN, LATEX, FIGURES, PROTOCOL, MODELS, CODECS, DIFFUSION, IMAGES, LOCK)


@contextmanager
def comparison_folder(path: str | Path, *, overwrite: bool) -> Iterator[Path]:
    """Create the folder of a comparison for the block, or open that of an earlier one, which is continued.

    Args:
        path: The folder.
        overwrite: Remove an earlier comparison in the folder first.

    Raises:
        UserError: The folder holds other files, is not writable, or another process writes to it.
    """
    folder = Path(path)
    if (folder / PROTOCOL).is_file():
        clear_leftovers(folder)
    require_new_folder(folder, "the comparison", own_files=OWN_FILES, overwrite=True)
    with new_folder(folder), only_writer(folder):
        if overwrite:
            _clear(folder)
        yield folder


def claim(folder: Path, protocol: Mapping[str, Any]) -> None:
    """Write the protocol of a new comparison.

    Raises:
        UserError: The folder holds a comparison under another protocol.
    """
    path = folder / PROTOCOL
    try:
        before = read_json(path)
    except FileNotFoundError:
        write_json(path, protocol)
        return
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}; add --overwrite (overwrite=True in Python)") from error
    different = sorted(_different(before, protocol))
    if different:
        raise UserError(
            f"{folder} holds a comparison under another protocol ({', '.join(different)}); add --overwrite "
            "(overwrite=True in Python) to replace it, or give another folder"
        )


def _different(before: Any, now: Mapping[str, Any], prefix: str = "") -> set[str]:
    """Return the names of the settings that differ."""
    if not isinstance(before, dict):
        return {prefix.rstrip(".") or "all"}
    found = set()
    for name in before.keys() | now.keys():
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        found |= _different(old, new, f"{prefix}{name}.") if isinstance(new, Mapping) else {f"{prefix}{name}"}
    return found


def _clear(folder: Path) -> None:
    for name in OWN_FILES:
        path = folder / name
        if name == LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
