"""A checkpoint: a folder of safetensors and JSON that is valid only when it is complete.

    step-00001000/
        model/ ema/                    diffusers folders
        discriminator.safetensors  objective.safetensors
        state.safetensors  state.json  optimizers, schedules, scaler, random generators, data position, best score
        MANIFEST.json                  written last: size and sha256 of every other file

Everything is written under a temporary name, bypassing the page cache where possible, flushed and renamed, and the
parent folder is flushed. A checkpoint is valid only if it has a manifest as `write_checkpoint` writes it, which names
every file (except those whose names begin with a dot) and agrees with them; `problems` lists why one is not valid.
Older checkpoints are removed only after a new one is valid; then `best` beside them is a link to the best one, which is
never removed. Nothing here is a pickle.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ldm_ae.core.errors import RunError, UserError, printable, reason
from ldm_ae.io.direct_files import Written, write_direct
from ldm_ae.io.files import read_json, sha256, sync, write_json, writing_folder
from ldm_ae.io.manifests import problems, write_manifest
from ldm_ae.io.tensor_files import read_tensors, safetensors_pieces
from ldm_ae.models.loading.checkpoints import STATE, check_best_pointer, checkpoint_name, point_to_best
from ldm_ae.models.loading.weights import WEIGHTS
from ldm_ae.training.checkpoints.snapshot import AVERAGED, Snapshot
from ldm_ae.training.checkpoints.tree import join_tensors, split_tensors

_METADATA = {"format": "pt"}  # as diffusers writes it
_THREADS = 3
"""One thread checks values, then helps the two that write."""


class Checkpoints:
    """The checkpoints of one run. A checkpoint that this object verified or wrote is not read again.

    Args:
        folder: `RUN/checkpoints`.
        keep: Number of newest checkpoints to keep, besides the best one.
    """

    def __init__(self, folder: Path, *, keep: int):
        self.folder = folder
        self._keep = keep
        self._valid: set[str] = set()

    def newest(self) -> tuple[Path | None, dict[str, list[str]]]:
        """Return the newest valid checkpoint, and the problems of each newer one by name.

        Raises:
            UserError: A folder that is not a checkpoint has the name `best`.
        """
        check_best_pointer(self.folder)
        path, damaged = newest_checkpoint(self.folder, self._valid)
        if path is not None:
            self._valid.add(path.name)
        return path, damaged

    def write(self, snapshot: Snapshot, *, best_step: int | None) -> Path:
        """Write a checkpoint, then remove those older than the newest `keep`, except the best one.

        Args:
            snapshot: The contents of the checkpoint.
            best_step: The step whose checkpoint scored best.

        Raises:
            DivergedError: A value is not finite. Nothing has changed in that case.
            RunError: The disk is full. Nothing has changed in that case.
        """
        folder = self.folder / checkpoint_name(snapshot.step)
        if folder.name not in self._valid:
            write_checkpoint(folder, snapshot)
            self._valid.add(folder.name)
        best = None if best_step is None else checkpoint_name(best_step)
        point_to_best(self.folder, best if best is not None and (self.folder / best).is_dir() else None)
        self._prune(best)
        return folder

    def _prune(self, best: str | None) -> None:
        kept = 0
        for path in sorted(self.folder.glob("step-*"), reverse=True):
            if kept >= self._keep:
                if path.name != best:
                    shutil.rmtree(path)
            elif path.name in self._valid or not problems(path):
                self._valid.add(path.name)
                kept += 1
            elif kept and path.name != best:
                shutil.rmtree(path)  # It is not valid, and a newer one is.


def write_checkpoint(folder: Path, snapshot: Snapshot) -> None:
    """Write one valid checkpoint, or raise an exception and change nothing.

    Check values in one thread while two others write, hash and flush a file each.
    """
    tree, tensors = split_tensors(snapshot.state)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with writing_folder(folder, size=snapshot.size()) as temporary, ThreadPoolExecutor(_THREADS) as pool:
        not_finite = pool.submit(snapshot.not_finite)
        files: dict[str, Future[Written]] = {}
        # Start with the largest file, so that little work remains when the others are written.
        for name, weights in ({STATE: tensors} | snapshot.networks).items():
            if weights:
                files[f"{name}.safetensors"] = pool.submit(_write_tensors, temporary, name, weights, None)
        for name, model in snapshot.models.items():
            model.save_config(temporary / name)
            weights = model.net.state_dict()
            name = f"{name}/{Path(WEIGHTS).stem}"
            files[f"{name}.safetensors"] = pool.submit(_write_tensors, temporary, name, weights, _METADATA)
        write_json(temporary / f"{STATE}.json", tree)
        if found := not_finite.result():
            raise DivergedError(
                f"step {snapshot.step} is not saved, because it holds values that are not finite ({found}); "
                "earlier checkpoints are unchanged"
            )
        entries = {name: file.result() for name, file in files.items()}
        for path in temporary.rglob("*.json"):
            sync(path)
            entries[path.relative_to(temporary).as_posix()] = Written(sha256(path), path.stat().st_size)
        write_manifest(temporary, entries)  # It must not reach the disk before the files that it describes.


def _write_tensors(folder: Path, name: str, tensors: dict[str, Tensor], metadata: dict[str, str] | None) -> Written:
    return write_direct(folder / f"{name}.safetensors", safetensors_pieces(tensors, metadata))


def newest_checkpoint(folder: str | Path, valid: Collection[str] = ()) -> tuple[Path | None, dict[str, list[str]]]:
    """Return the newest valid checkpoint in `folder`, and the problems of each newer one by name; those of the names
    `valid` are not verified again."""
    damaged: dict[str, list[str]] = {}
    for path in sorted(Path(folder).glob("step-*"), reverse=True):
        if path.name in valid or not (wrong := problems(path)):
            return path, damaged
        damaged[path.name] = wrong
    return None, damaged


def load_networks(folder: Path, networks: dict[str, nn.Module]) -> None:
    """Load weights in place, each from the safetensors file of its name (without the suffix) in a checkpoint.

    Raises:
        UserError: A part is missing; the message names it.
        MismatchError: A part does not fit this configuration.
    """
    for name, network in networks.items():
        if not network.state_dict():
            continue
        path = folder / f"{name}.safetensors"
        if not path.is_file():
            raise UserError(
                f"checkpoint {folder} has no {name}.safetensors, which this configuration needs; give another --out, "
                "or the configuration that the run was started with"
            )
        tensors = read_tensors(path)
        try:
            network.load_state_dict(tensors)
        except RuntimeError as error:
            raise MismatchError(
                name, f"{path} does not fit this configuration: {_first_difference(network, tensors)}"
            ) from error


def layout_fits(folder: Path, name: str, network: nn.Module) -> bool:
    """Return whether a checkpoint has the tensors of a network under this name, with its shapes."""
    path, own = folder / f"{name}.safetensors", network.state_dict()
    if not own or not path.is_file():
        return False
    return {key: tensor.shape for key, tensor in read_tensors(path).items()} == {k: t.shape for k, t in own.items()}


def _first_difference(network: nn.Module, saved: Mapping[str, Tensor]) -> str:
    """Name the first tensor that one side lacks or that has another shape."""
    own = network.state_dict()
    for name in dict.fromkeys([*own, *saved]):
        if name not in saved:
            return f"it lacks {name} of the configured network"
        if name not in own:
            return f"it has {printable(name)}, which the configured network lacks"
        if own[name].shape != saved[name].shape:
            return f"expected {name} of shape {list(own[name].shape)}, got {list(saved[name].shape)}"
    return "its values cannot be loaded into the configured network"


class DivergedError(RunError):
    """A value of a run is not finite, so that it is not saved."""


class MismatchError(UserError):
    """A network in a checkpoint has another configuration; `part` is its name in the checkpoint."""

    def __init__(self, part: str, message: str):
        self.part = part
        super().__init__(message)


def load_state(folder: Path) -> Any:
    """Return the saved tree of optimizers, random states and counters.

    Raises:
        UserError: A file is missing, damaged or does not fit the other; the message names it.
    """
    for name in (f"{STATE}.json", f"{STATE}.safetensors"):
        if not (folder / name).is_file():
            raise UserError(f"checkpoint {folder} has no {name}")
    tensors = read_tensors(folder / f"{STATE}.safetensors")
    try:
        return join_tensors(read_json(folder / f"{STATE}.json"), tensors)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, RuntimeError) as error:
        raise UserError(f"{folder / f'{STATE}.json'} is not a valid saved state: {reason(error)}") from error


def link_model(checkpoint: Path, temporary: Path) -> None:
    """Hard-link a checkpoint's model (the averaged one if it exists) into another folder on the same disk."""
    source = checkpoint / (AVERAGED if (checkpoint / AVERAGED).is_dir() else "model")
    for path in source.iterdir():
        # Weights are never changed in place; a user might edit a configuration by hand.
        if path.name == WEIGHTS:
            try:
                os.link(path, temporary / path.name)
            except OSError:  # a file system without hard links
                shutil.copyfile(path, temporary / path.name)
        else:
            shutil.copyfile(path, temporary / path.name)
