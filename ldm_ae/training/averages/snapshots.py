"""The stored averages of a run, one folder for each snapshot. None is ever removed, because a combination needs many.

    RUN/averages/step-00001000/
        0.05.safetensors  0.1.safetensors    averaged parameters by length, float32
        buffers.safetensors                  the model's buffers, if it has any
        averages.json                        format, step, lengths
        MANIFEST.json                        written last: size and sha256 of every other file

A run of several phases has these folders in `averages/phase-1/` and so on, with the steps of the phase.

The values are float32: half precision rounds a weight by up to 0.05 %, and the factors of a combination have both signs
and magnitudes that add up to 50 (of 32 snapshots at length 0.014), which multiplies the rounding. A snapshot is written
under a temporary name, flushed and renamed.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ldm_ae.core.background import BackgroundWriter
from ldm_ae.core.errors import RunError, UserError, reason
from ldm_ae.io.direct_files import Written, write_direct
from ldm_ae.io.files import clear_leftovers, read_json, sha256, sync, write_json, writing_folder
from ldm_ae.io.manifests import MANIFEST, problems, write_manifest
from ldm_ae.io.tensor_files import read_tensors, safetensors_pieces
from ldm_ae.models.loading.checkpoints import checkpoint_name
from ldm_ae.training.averages.power import Averaged, PowerEMA, Weights

AVERAGES = "averages"
"""The folder of a run that holds its snapshots."""
_DESCRIPTION, _BUFFERS = "averages.json", "buffers"
_FORMAT = "ldm_ae.averages/1"
_PHASE = "phase-"


class Snapshot(NamedTuple):
    """A stored snapshot, of which nothing but the description is read."""

    path: Path
    step: int
    lengths: tuple[float, ...]

    def read(self, length: float) -> Weights:
        """Return the averaged parameters of a length by name."""
        return read_tensors(self.path / f"{length!r}.safetensors")

    def buffers(self) -> Weights:
        """Return the model's buffers by name."""
        path = self.path / f"{_BUFFERS}.safetensors"
        return read_tensors(path) if path.is_file() else {}


class Snapshots:
    """The snapshots of a run that is being trained, written by the main process.

    Args:
        run: The run directory.
        in_background: Write while training continues, from a copy on the host.
        phase: The number of the phase in a run of several; None in a run of one.
    """

    def __init__(self, run: Path, *, in_background: bool, phase: int | None = None):
        self._all, self._phase, self._in_background = run / AVERAGES, phase, in_background
        self._folder = self._all if phase is None else self._all / f"{_PHASE}{phase}"
        self.writer = BackgroundWriter()

    def save(self, power: PowerEMA, step: int) -> None:
        """Write a snapshot of `step`; an error of the background thread is raised by the next call, or by `writer`.

        Raises:
            RunError: The disk is full, or a value is not finite.
        """
        self.writer.wait()
        job = partial(write_snapshot, self._folder / checkpoint_name(step), step, power.copied())
        if self._in_background:
            self.writer.submit(job)
        else:
            job()

    def rewind(self, step: int) -> None:
        """Remove the snapshots after `step`, which a run that resumes there writes again, and interrupted writes."""
        if self._phase is not None:
            for number, path in _phases(self._all).items():
                if number > self._phase:
                    shutil.rmtree(path)
        if self._folder.is_dir():
            clear_leftovers(self._folder)
        for path in self._folder.glob("step-*"):
            if path.name > checkpoint_name(step):
                shutil.rmtree(path)


def write_snapshot(folder: Path, step: int, averaged: Averaged) -> None:
    """Write one valid snapshot, or raise an exception and change nothing."""
    files = {repr(length): weights for length, weights in averaged.averages.items()}
    if averaged.buffers:
        files[_BUFFERS] = averaged.buffers
    for name, weights in files.items():
        for key, tensor in weights.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise RunError(f"the averages of step {step} are not saved: {key} of {name} is not finite")
    folder.parent.mkdir(parents=True, exist_ok=True)
    size = sum(tensor.nbytes for weights in files.values() for tensor in weights.values())
    with writing_folder(folder, size=size) as temporary:
        entries = {
            f"{name}.safetensors": write_direct(temporary / f"{name}.safetensors", safetensors_pieces(weights))
            for name, weights in files.items()
        }
        description = temporary / _DESCRIPTION
        write_json(description, {"format": _FORMAT, "step": step, "lengths": list(averaged.averages)})
        sync(description)
        entries[_DESCRIPTION] = Written(sha256(description), description.stat().st_size)
        write_manifest(temporary, entries)


def _phases(folder: Path) -> dict[int, Path]:
    """Return the folders of the phases of a run in `RUN/averages` by number, in order."""
    found = {path.name.removeprefix(_PHASE): path for path in folder.glob(f"{_PHASE}*")}
    return dict(sorted((int(number), path) for number, path in found.items() if number.isdecimal()))


class Stored(NamedTuple):
    """The snapshots of a run, or of the newest of its phases that has some."""

    snapshots: list[Snapshot]
    """Snapshots with the lengths of the newest one, the oldest first, never empty. `verify` checks their files."""
    invalid: dict[Path, str]
    """Why each other folder is not read."""
    phase: int
    """The number of the phase, from 1."""


def stored_snapshots(run: str | Path) -> Stored:
    """Return the snapshots of a run whose descriptions are valid.

    Raises:
        UserError: There is none.
    """
    found: list[Snapshot] = []
    invalid: dict[Path, str] = {}
    folder = Path(run) / AVERAGES
    for phase, place in reversed((_phases(folder) or {1: folder}).items()):
        for path in sorted(place.glob("step-*")):
            try:
                found.append(_described(path))
            except (OSError, ValueError) as error:
                invalid[path] = reason(error)
        if found:
            lengths = found[-1].lengths
            for snapshot in found:
                if snapshot.lengths != lengths:
                    invalid[snapshot.path] = f"it has the lengths {snapshot.lengths}, and the newest {lengths}"
            return Stored([snapshot for snapshot in found if snapshot.lengths == lengths], invalid, phase)
    damaged = next((f" ({path.name}: {why})" for path, why in invalid.items()), "")
    raise UserError(
        f"{run} has no snapshots of averages{damaged}; only a run that was trained with training.power_ema true stores "
        "them, every training.power_ema_every steps"
    )


def verify(snapshot: Snapshot) -> None:
    """Raise `UserError` if a snapshot differs from its manifest."""
    if wrong := problems(snapshot.path):
        raise UserError(f"snapshot {snapshot.path} is damaged ({wrong[0]}); restore it from a copy, or remove it")


def _described(path: Path) -> Snapshot:
    """Return a snapshot by its description; raise `ValueError` or `OSError` for any other folder."""
    if not (path / MANIFEST).is_file():
        raise ValueError(f"{MANIFEST} is missing")
    description = read_json(path / _DESCRIPTION)
    if not isinstance(description, dict) or description.get("format") != _FORMAT:
        raise ValueError(f"{_DESCRIPTION} is not a description of format {_FORMAT}")
    step, lengths = description.get("step"), description.get("lengths")
    if type(step) is not int or path.name != checkpoint_name(step):
        raise ValueError(f"{_DESCRIPTION} has another step than the folder's name")
    if not isinstance(lengths, list) or not lengths or not all(type(length) is float for length in lengths):
        raise ValueError(f"{_DESCRIPTION} has no lengths")
    if not all(0.0 < length < 1.0 for length in lengths) or len(set(lengths)) < len(lengths):
        raise ValueError(f"{_DESCRIPTION} has invalid lengths")
    return Snapshot(path, step, tuple(lengths))
