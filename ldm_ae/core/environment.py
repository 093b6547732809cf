"""What a result was made with: versions, commit, device."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ldm_ae.core.precision import machine_name
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


def describe_environment(device: torch.device) -> dict[str, object]:
    """Versions, commit and device, as JSON values."""
    return {"versions": package_versions(), "git_commit": git_commit(), "device": machine_name(device)}
