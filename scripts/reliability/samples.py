"""A tiny trained run and a tiny latent store to damage, and folders that can be put back as they were."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from trials import make_images, make_recipe


class Samples(NamedTuple):
    """What `make_samples` made."""

    images: Path
    recipe: Path
    run: Path
    """A finished run of four steps with the checkpoints of steps 2 and 4."""
    store: Path
    """Twelve images in three shards, of the run's model."""

    @property
    def checkpoints(self) -> Path:
        return self.run / "checkpoints"


def ldm_ae(*arguments: object, timeout: float = 300, prefix: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, without a network; `prefix` is the command that starts it."""
    command = [*prefix, sys.executable, "-m", "ldm_ae.cli", *map(str, arguments)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=environment, errors="backslashreplace"
    )


def make_samples(folder: Path) -> Samples:
    """Train and encode with the real commands."""
    images = make_images(folder / "images", 12)
    recipe = make_recipe(folder / "recipe.yaml", images, max_steps=4, validate_every=100)
    samples = Samples(images, recipe, folder / "run", folder / "store")
    for arguments in (
        ("train", "--config", recipe, "--out", samples.run),
        ("encode", samples.run, images, samples.store, "--workers", 0, "--batch-size", 4, "--shard-size", 5),
    ):
        done = ldm_ae(*arguments)
        if done.returncode:
            raise RuntimeError(f"{arguments[0]} ended with {done.returncode}: {done.stderr}")
    return samples


class Snapshot:
    """The files of a folder as they were, to put them back after a mutation.

    Args:
        folder: Everything in it is kept in memory.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    def changed(self) -> bool:
        """Whether any byte differs from what was there."""
        return Snapshot(self.folder).files != self.files

    def restore(self) -> None:
        """Put back what was there, and nothing else."""
        now = Snapshot(self.folder).files
        for name in now.keys() - self.files.keys():
            (self.folder / name).unlink()
        for name, content in self.files.items():
            if now.get(name) != content:
                path = self.folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)


def copy_run(samples: Samples, target: Path) -> Path:
    """A copy of the run, which the same recipe continues."""
    shutil.copytree(samples.run, target)
    return target


def peak_megabytes() -> float:
    """Largest resident size of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
