"""The manifest of a folder: size and SHA-256 of every file in it, written last, so that only a complete folder has one.

A folder is *valid* if its manifest is as it was written, names every file (except those whose names begin with a dot)
and agrees with them. It is *incomplete* if the manifest or a file that it names is missing, as after an interrupted
copy, and *damaged* if there is another disagreement.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from ldm_ae.core.errors import printable, reason
from ldm_ae.io.direct_files import Written
from ldm_ae.io.files import read_json, sha256, write_json

MANIFEST = "MANIFEST.json"
FORMAT = "ldm_ae.checkpoint/1"
_ENTRY = {"bytes": int, "sha256": str}
_MISSING = " is missing"

State = Literal["valid", "incomplete", "damaged"]


def write_manifest(folder: Path, entries: Mapping[str, Written]) -> None:
    """Write the manifest of files that are on the disk already."""
    described = {name: {"bytes": size, "sha256": digest} for name, (digest, size) in sorted(entries.items())}
    write_json(folder / MANIFEST, {"format": FORMAT, "files": described})


def problems(folder: str | Path) -> list[str]:
    """Return why a folder is not valid, one line per problem; an empty list if it is valid."""
    folder = Path(folder)
    try:
        files = _read_manifest(folder / MANIFEST)
    except FileNotFoundError:
        return [f"{MANIFEST}{_MISSING}"]
    except (OSError, ValueError) as error:
        return [f"{MANIFEST} is damaged ({reason(error)})"]
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    there = {name for name in there if not any(part.startswith(".") for part in name.split("/"))}  # such as .DS_Store
    found = [f"{printable(name)} is not in {MANIFEST}" for name in sorted(there - files.keys() - {MANIFEST})]
    for name, (size, digest) in files.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            found.append(f"{MANIFEST} names a file outside the checkpoint: {printable(name)}")
        elif name not in there:
            found.append(f"{printable(name)}{_MISSING}")
        elif wrong := _difference(folder / name, size, digest):
            found.append(f"{printable(name)} {wrong}")
    return found


def state_of(found: list[str]) -> State:
    """Return the state of a folder with these `problems`."""
    if not found:
        return "valid"
    return "incomplete" if any(problem.endswith(_MISSING) for problem in found) else "damaged"


def _difference(path: Path, size: int, digest: str) -> str | None:
    try:
        if (found := path.stat().st_size) != size:
            return f"has {found} bytes instead of {size}"
        return None if sha256(path) == digest else "has changed since it was written"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _read_manifest(path: Path) -> dict[str, tuple[int, str]]:
    """Return (bytes, sha256) of each file by name; raise `ValueError` unless `write_manifest` writes such."""
    manifest = read_json(path, as_written=True)
    if not isinstance(manifest, dict) or manifest.keys() != {"format", "files"}:
        raise ValueError("it is not a manifest")
    if manifest["format"] != FORMAT:
        raise ValueError(f"its format is {printable(manifest['format'])}; this program reads {FORMAT}")
    files = manifest["files"]
    if not isinstance(files, dict) or not files:
        raise ValueError("it names no files")
    for name, entry in files.items():
        if not isinstance(entry, dict) or {key: type(value) for key, value in entry.items()} != _ENTRY:
            raise ValueError(f"its entry of {printable(name)} is wrong")
    return {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
