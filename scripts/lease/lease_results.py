"""The results of a lease: its state, the figures of a run, the report, and the packed files."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from ldm_ae.core.errors import UserError
from ldm_ae.io.files import make_folder

STATE, REPORT, PARTS = "lease.json", "lease.md", "lease.tar."
_FIGURES = {"train": ("images_per_second", "peak_memory_bytes"), "validation": ("psnr", "ssim", "perceptual")}
_END = 20_480
"""Bytes of the end of a tar file, with its padding."""
_HEADERS = 2048
"""Bytes of a file's headers and padding in a tar file, at most."""


def import_ahead() -> None:
    """Import what `write_half` and `report` need, which takes seconds, while the first part runs."""
    from diffusers import AutoencoderKL  # noqa: F401

    import ldm_ae.interop  # noqa: F401


def trained(run: Path) -> tuple[int, float]:
    """Return the steps and the seconds of training of the newest checkpoint of a run; 0 and 0 without one."""
    from ldm_ae.training.checkpoints.checkpoint import newest_checkpoint
    from ldm_ae.training.checkpoints.state import phase_and_step

    newest, _ = newest_checkpoint(run / "checkpoints")
    return (0, 0.0) if newest is None else phase_and_step(newest)[1:]


def last_figures(run: Path) -> dict[str, float]:
    """Return the speed and the validation that a run has logged last."""
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    logged = {line["kind"]: line for line in lines}
    found = ((name, logged.get(kind, {}).get(name)) for kind, names in _FIGURES.items() for name in names)
    return {name: value for name, value in found if value is not None}


def write_half(run: Path, out: Path) -> None:
    """Write the model of a run in half precision."""
    import torch

    from ldm_ae.interop import export_diffusers
    from ldm_ae.models import load_autoencoder

    export_diffusers(load_autoencoder(run), out, weights=torch.float16, overwrite=True)


def in_words(part: Mapping[str, Any]) -> str:
    """Return the status, the main figures and the reason of a part."""
    units = {"steps": "steps", "images_per_second": "images/s", "psnr": "dB PSNR"}
    found = [f"{part[name]:.4g} {unit}" for name, unit in units.items() if name in part]
    return ", ".join([part["status"], *found, *filter(None, [part.get("reason")])])


@cache
def _machine() -> str:
    from ldm_ae.core.environment import git_commit
    from ldm_ae.core.precision import machine_name
    from ldm_ae.models import pick_device

    return f"{machine_name(pick_device())}, commit {git_commit(Path(__file__).parent)}"


def report(out: Path, state: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of lease.md: a table of all parts, and the tables of the benchmarks."""
    yield f"# Lease: {state['used_minutes']:.1f} minutes on {_machine()}"
    yield from ("", "| part | status | minutes | steps | images/s | PSNR, dB | start | reason |", "|" + "---|" * 8)
    for name, part in state["parts"].items():
        keys = ("status", "trained_minutes", "steps", "images_per_second", "psnr", "start", "reason")
        values = ["" if part.get(key) is None else part[key] for key in keys]
        cells = [f"{v:.4g}" if isinstance(v, float) else str(v).replace("|", "\\|") for v in values]
        yield f"| {name} | {' | '.join(cells)} |"
    for path in sorted((out / "benchmarks").glob("*.md")):
        yield from ("", path.read_text(encoding="utf-8").strip())


def pack(out: Path, home: Path, phases: Sequence[str], *, megabytes: float, part_megabytes: float) -> list[str]:
    """Pack the results into parts of a tar file, beside the state and the report.

    The order is: figures and logs, the models of `phases` from the last to the first, samples, checkpoints. What does
    not fit into the remaining size is left out.

    Args:
        out: The folder of the lease.
        home: The folder to write into; parts of an earlier lease in it are removed.
        phases: Names of the phases, in the order of training.
        megabytes: Size of all parts together.
        part_megabytes: Size of a part.

    Returns:
        What is left out.
    """
    for path in make_folder(home).glob(f"{PARTS}*"):
        path.unlink()
    runs = [f"runs/{name}" for name in reversed(phases)]
    names = [STATE, REPORT, "logs", "benchmarks"]
    names += [f"{run}/{name}" for run in runs for name in ("metrics.jsonl", "config.yaml", "environment.json")]
    names += [f"models/{name}" for name in reversed(phases)]
    names += [f"{run}/{name}" for name in ("samples", "checkpoints", "model") for run in runs]
    stream, room, left_out = BytesIO(), 1e6 * megabytes - _END, []
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path in (out / name for name in names if (out / name).exists()):
            files = [path] if path.is_file() else [found for found in path.rglob("*") if found.is_file()]
            size = sum(file.stat().st_size + _HEADERS for file in files)
            if size > room:
                left_out.append(str(path.relative_to(out)))
            else:
                archive.add(path, path.relative_to(out))
                room -= size
    content, length = stream.getvalue(), int(1e6 * part_megabytes)
    for number, begin in enumerate(range(0, len(content), length)):
        (home / f"{PARTS}{number:03d}").write_bytes(content[begin : begin + length])
    for path in (out / name for name in (STATE, REPORT) if (out / name).is_file()):
        shutil.copy(path, home)
    return left_out


def unpack(earlier: Path, out: Path) -> None:
    """Copy the results of an earlier lease, its folder or what `pack` wrote, to the folder `out`.

    Raises:
        UserError: There are none.
    """
    parts = sorted(earlier.glob(f"{PARTS}*"))
    if parts:
        with tarfile.open(fileobj=BytesIO(b"".join(part.read_bytes() for part in parts))) as archive:
            archive.extractall(make_folder(out), filter="data")
    elif (earlier / STATE).is_file():
        shutil.copytree(earlier, out, symlinks=True, dirs_exist_ok=True)
    else:
        raise UserError(f"{earlier} has no {STATE}; give the --out or the --home of an earlier lease as --resume")
