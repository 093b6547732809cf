"""What a result was made with: versions, commit, device."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import get_args

import torch

from ldm_ae.core.precision import DTYPES, LAYOUTS, Convolutions, machine_name
from ldm_ae.errors import UserError, printable, reason
from ldm_ae.files import read_json
from ldm_ae.version import __version__

PACKAGES = (
    "torch", "torchvision", "diffusers", "accelerate", "safetensors", "lpips", "numpy", "pillow",
)  # fmt: skip


def package_versions() -> dict[str, str | None]:
    """Versions of this package, Python and what results depend on; None for one that is not installed."""
    versions: dict[str, str | None] = {"ldm_ae": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions


def git_commit(folder: str | Path = ".") -> str | None:
    """The commit that `folder` is at, with `-dirty` if tracked files differ from it; None outside a repository."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None


ENVIRONMENT = "environment.json"
"""In a run directory: `describe_environment`, and `numerics` as `Numerics.describe` gives it."""
_BEFORE_NUMERICS = {"precision": "bf16", "layout": "channels_last", "machine": "", "reason": ""}
"""What `auto` stands for in a run that was started before precision was chosen: what every recipe had then."""


def recorded_numerics(run: Path) -> dict[str, str] | None:
    """The precision and layout that a run directory was started with; None for a run that is new.

    Raises:
        UserError: its environment.json is damaged.
    """
    path = run / ENVIRONMENT
    if not path.is_file():
        return None
    try:
        found = read_json(path).get("numerics", _BEFORE_NUMERICS)
        recorded = {name: str(found[name]) for name in _BEFORE_NUMERICS}
        recorded["convolutions"] = str(found.get("convolutions", "torch"))  # runs from before 2026-11-28 have none
        for name, known in (("precision", DTYPES), ("layout", LAYOUTS), ("convolutions", get_args(Convolutions))):
            if recorded[name] not in known:
                raise ValueError(f"{name} is {printable(recorded[name])}")
        return recorded
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({reason(error)}); remove it and name --training.precision, or put it back from a copy"
        ) from error


def describe_environment(device: torch.device) -> dict[str, object]:
    """Versions, commit and device, as JSON values."""
    return {"versions": package_versions(), "git_commit": git_commit(), "device": machine_name(device)}
