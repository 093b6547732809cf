"""A checkpoint: a folder of safetensors and JSON that is whole or does not count.

    step-00001000/
        model/ ema/                    diffusers folders
        discriminator.safetensors  objective.safetensors
        state.safetensors  state.json  optimizers, schedules, scaler, random generators, data position, best score
        MANIFEST.json                  written last: size and sha256 of every other file

Everything is written under a temporary name, flushed to the disk and renamed. A folder without a manifest that is as
`save_checkpoint` writes it, names every file (those whose names begin with a dot aside) and agrees with them does not
count, and says why when asked. Older checkpoints go only after a new one counts.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from ldm_ae.errors import UserError, printable, reason
from ldm_ae.files import read_json, sha256, sync, write_json, writing_folder
from ldm_ae.models import Autoencoder
from ldm_ae.tensor_files import read_tensors
from ldm_ae.training.tree import join_tensors, split_tensors

MANIFEST = "MANIFEST.json"
FORMAT = "ldm_ae.checkpoint/1"
_ENTRY = {"bytes": int, "sha256": str}


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after `step` updates."""
    return f"step-{step:08d}"


def save_checkpoint(
    folder: str | Path,
    *,
    autoencoder: Autoencoder,
    ema: Autoencoder | None,
    modules: dict[str, nn.Module],
    state: dict[str, Any],
) -> None:
    """Write a checkpoint; afterwards it counts, or there was an exception and nothing has changed.

    Args:
        folder: `.../checkpoints/step-XXXXXXXX`; replaced if it is there and does not count.
        autoencoder: Saved as a diffusers folder.
        ema: Likewise.
        modules: Networks saved by name as one safetensors file each; an empty one is left out.
        state: A tree of dicts, lists, tuples, tensors and JSON values.
    """
    folder = Path(folder)
    if folder.exists():
        if not problems(folder):
            return
        shutil.rmtree(folder)
    with writing_folder(folder) as temporary:
        autoencoder.save_pretrained(temporary / "model")
        if ema is not None:
            ema.save_pretrained(temporary / "ema")
        for name, module in modules.items():
            if tensors := module.state_dict():
                save_file(_plain(tensors), temporary / f"{name}.safetensors")
        tree, tensors = split_tensors(state)
        save_file(_plain(tensors), temporary / "state.safetensors")
        write_json(temporary / "state.json", tree)
        files = {p.relative_to(temporary).as_posix(): p for p in sorted(temporary.rglob("*")) if p.is_file()}
        for path in files.values():
            sync(path)  # the manifest must not reach the disk before what it vouches for
        manifest = {name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for name, path in files.items()}
        write_json(temporary / MANIFEST, {"format": FORMAT, "files": manifest})


def problems(folder: str | Path) -> list[str]:
    """Why a checkpoint does not count, a line each; empty if it does."""
    folder = Path(folder)
    try:
        files = _read_manifest(folder / MANIFEST)
    except FileNotFoundError:
        return [f"{MANIFEST} is missing"]
    except (OSError, ValueError) as error:
        return [f"{MANIFEST} is damaged ({reason(error)})"]
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    there = {name for name in there if not any(part.startswith(".") for part in name.split("/"))}  # such as .DS_Store
    found = [f"{printable(name)} is not in {MANIFEST}" for name in sorted(there - files.keys() - {MANIFEST})]
    for name, (size, digest) in files.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            found.append(f"{MANIFEST} names a file outside the checkpoint: {printable(name)}")
        elif name not in there:
            found.append(f"{printable(name)} is missing")
        elif wrong := _difference(folder / name, size, digest):
            found.append(f"{printable(name)} {wrong}")
    return found


def _difference(path: Path, size: int, digest: str) -> str | None:
    try:
        if (found := path.stat().st_size) != size:
            return f"has {found} bytes instead of {size}"
        return None if sha256(path) == digest else "has changed since it was written"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _read_manifest(path: Path) -> dict[str, tuple[int, str]]:
    """(bytes, sha256) of each file by name; ValueError for anything that `save_checkpoint` does not write."""
    manifest = read_json(path, as_written=True)
    if not isinstance(manifest, dict) or manifest.keys() != {"format", "files"}:
        raise ValueError("it is no manifest")
    if manifest["format"] != FORMAT:
        raise ValueError(f"its format is {printable(manifest['format'])}; this program reads {FORMAT}")
    files = manifest["files"]
    if not isinstance(files, dict) or not files:
        raise ValueError("it names no files")
    for name, entry in files.items():
        if not isinstance(entry, dict) or {key: type(value) for key, value in entry.items()} != _ENTRY:
            raise ValueError(f"its entry of {printable(name)} is wrong")
    return {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}


def newest_checkpoint(folder: str | Path) -> tuple[Path | None, dict[str, list[str]]]:
    """The newest checkpoint in `folder` that counts, and why each newer one does not, by name."""
    damaged: dict[str, list[str]] = {}
    for path in sorted(Path(folder).glob("step-*"), reverse=True):
        if not (wrong := problems(path)):
            return path, damaged
        damaged[path.name] = wrong
    return None, damaged


def load_modules(folder: Path, modules: dict[str, nn.Module]) -> None:
    """Load each named network's weights in place; UserError names a part that is missing or does not fit."""
    for name, module in modules.items():
        if not module.state_dict():
            continue
        path = folder / f"{name}.safetensors"
        if not path.is_file():
            raise UserError(f"checkpoint {folder} has no {path.name}, which this configuration needs")
        tensors = read_tensors(path)
        try:
            module.load_state_dict(tensors)
        except RuntimeError as error:
            raise UserError(f"{path} does not fit this configuration: {str(error).splitlines()[-1].strip()}") from error


def load_state(folder: Path) -> Any:
    """The tree that was saved; UserError names a file that is missing, damaged or does not fit the other."""
    for name in ("state.json", "state.safetensors"):
        if not (folder / name).is_file():
            raise UserError(f"checkpoint {folder} has no {name}")
    tensors = read_tensors(folder / "state.safetensors")
    try:
        return join_tensors(read_json(folder / "state.json"), tensors)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{folder / 'state.json'} is no saved state: {reason(error)}") from error


def prune(folder: str | Path, *, keep: int, also: str | None) -> None:
    """Remove all but the newest `keep` checkpoints that count, and `also`, the best one's name.

    A checkpoint that does not count is removed only once a newer one does.
    """
    paths = sorted(Path(folder).glob("step-*"), reverse=True)
    counting = [path for path in paths if not problems(path)]
    kept = {path.name for path in counting[:keep]} | {also}
    for path in paths:
        if counting and path.name < counting[0].name and path.name not in kept:
            shutil.rmtree(path)


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
