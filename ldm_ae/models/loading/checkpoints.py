"""The checkpoints of a run by name: `RUN@best`, `RUN@last`, `RUN@1500`, and the link `checkpoints/best`.

`checkpoints/best` is a relative symbolic link to the checkpoint that scored best in validation. On a file system
without links it is a text file with that folder's name. Either is replaced in one rename, and neither is a checkpoint
of its own: those are the folders `step-*`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from ldm_ae.core.errors import UserError, printable
from ldm_ae.core.nearest import nearest_path
from ldm_ae.io.files import read_json, sync, writing
from ldm_ae.io.manifests import MANIFEST, problems, state_of

CHECKPOINTS = "checkpoints"
"""The folder of a run that holds its checkpoints."""
BEST, LAST = "best", "last"
STATE = "state"
_POINTER_BYTES, _DIGITS = 64, 20


def checkpoint_name(step: int) -> str:
    """Return the folder name of the checkpoint after `step` updates."""
    return f"step-{step:08d}"


def all_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in `RUN/checkpoints`, the oldest first, valid or not."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir() and not path.is_symlink())


def point_to_best(folder: Path, name: str | None) -> None:
    """Make `best` in `RUN/checkpoints` denote the checkpoint `name` in one rename; None removes it.

    A copy of a checkpoint in its place, as tools leave that follow links when they copy, is removed.

    Raises:
        UserError: Something else is in its place.
    """
    best = folder / BEST
    if name is not None and pointed_to(folder) == name:
        return
    check_best_pointer(folder)
    if best.is_dir() and not best.is_symlink():
        shutil.rmtree(best)
    if name is None:
        best.unlink(missing_ok=True)
        return
    temporary = folder / f".{BEST}.{os.getpid()}.tmp"
    temporary.unlink(missing_ok=True)
    try:
        os.symlink(name, temporary)
        os.replace(temporary, best)
        sync(folder)
    except OSError:  # a file system without symbolic links
        temporary.unlink(missing_ok=True)
        with writing(best) as file:
            file.write_text(f"{name}\n", encoding="utf-8")


def check_best_pointer(folder: Path) -> None:
    """Raise `UserError` if `best` in `RUN/checkpoints` is a folder of something else, which is not replaced."""
    best = folder / BEST
    if best.is_dir() and not best.is_symlink() and not (best / MANIFEST).is_file():
        raise UserError(f"{best} is a folder that is not a checkpoint; rename it, because the run needs this name")


def pointed_to(folder: Path) -> str | None:
    """Return the name of the checkpoint that `best` in `RUN/checkpoints` denotes; None if there is no such link."""
    best = folder / BEST
    if best.is_symlink():
        name = os.readlink(best)
    elif best.is_file() and best.stat().st_size <= _POINTER_BYTES:
        name = best.read_text(encoding="utf-8", errors="replace").strip()
    else:
        return None
    return name if name.startswith("step-") and name == Path(name).name else None


def best_in_state(checkpoint: Path) -> dict[str, Any] | None:
    """Return what a checkpoint's state records of the best validation so far; None if it is absent or damaged."""
    try:
        best = read_json(checkpoint / f"{STATE}.json")["best"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return best if isinstance(best, dict) and type(best.get("step")) is int else None


def find_named(name: str | Path) -> Path | None:
    """Return the checkpoint that `RUN@best`, `RUN@last`, `RUN@STEP` or a path in `RUN/checkpoints` names.

    Returns:
        The folder; None if `name` has no such form.

    Raises:
        UserError: There is no such run or checkpoint, with a list of those there are; or it is not valid.
    """
    path, text = Path(name), str(name)
    if path.parent.name == CHECKPOINTS and not path.is_dir() and any(path.parent.glob("step-*")):
        return _named(path.parent, path.name)
    run, at, which = text.rpartition("@")
    if not at or not run or path.exists() or "/" in which:
        return None
    if (Path(run) / CHECKPOINTS).is_dir():
        return _named(Path(run) / CHECKPOINTS, which)
    if Path(run).is_dir():
        raise UserError(f"{run} is not a run: it has no checkpoints/, of which @{printable(which)} could be one")
    near = nearest_path(run)
    hint = f"; did you mean {near}@{which}?" if near is not None and (near / CHECKPOINTS).is_dir() else ""
    raise UserError(f"no such run: {run}{hint}")


def _named(folder: Path, which: str) -> Path:
    """Return a checkpoint in `RUN/checkpoints` by the name `best`, `last`, its step or its folder's name."""
    found = {path.name: path for path in all_checkpoints(folder)}
    if which == LAST:
        complete = [path for path in found.values() if (path / MANIFEST).is_file()]
        chosen = complete[-1] if complete else None
    elif which == BEST:
        chosen = _best(folder, found)
    else:
        chosen = found.get(checkpoint_name(int(which)) if which.isdecimal() and len(which) < _DIGITS else which)
    if chosen is None:
        raise UserError(f"{folder.parent} has no checkpoint '{printable(which)}'{_why(which)}; {_listed(folder)}")
    if wrong := problems(chosen):
        raise UserError(f"{chosen} is {state_of(wrong)} ({wrong[0]}); {_listed(folder)}")
    return chosen


def _best(folder: Path, found: dict[str, Path]) -> Path | None:
    """Return the best checkpoint: of the link, of a copy in its place, or, as older runs have no link, of the state."""
    if (name := pointed_to(folder)) is not None:
        return found.get(name)
    if (folder / BEST / MANIFEST).is_file():
        return folder / BEST
    for path in reversed(found.values()):
        if (best := best_in_state(path)) is not None:
            return found.get(checkpoint_name(best["step"]))
    return None


def _why(which: str) -> str:
    return " (only a validation chooses one)" if which == BEST else ""


def _listed(folder: Path) -> str:
    """Return a list of the names that a run's checkpoints have."""
    found = {path.name: path for path in all_checkpoints(folder)}
    best = _best(folder, found)
    steps = [name.removeprefix("step-").lstrip("0") or "0" for name in found]
    marked = [
        f"{step} ({BEST})" if best is not None and path.name == best.name else step
        for step, path in zip(steps, found.values(), strict=True)
    ]
    return f"there are {', '.join(marked)}" if marked else "there are no checkpoints"
