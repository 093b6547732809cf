"""The environment that produced a result: versions, commit, device."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ldm_ae.core.precision import machine_name
from ldm_ae.version import __version__

PACKAGES = (
    "torch", "torchvision", "diffusers", "accelerate", "safetensors", "transformers", "lpips", "numpy", "pillow",
)  # fmt: skip


def package_versions() -> dict[str, str | None]:
    """Return versions of this package, Python and packages that affect results; None for one that is not installed."""
    versions: dict[str, str | None] = {"ldm_ae": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions


def git_commit(folder: str | Path = ".") -> str | None:
    """Return the commit of `folder`, with `-dirty` if tracked files differ from it; None outside a repository."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None


ENVIRONMENT = "environment.json"
"""File in a run directory that holds `describe_environment`, `numerics` as `Numerics.describe` returns it, and the
`perceptual` loss with the hashes of its feature networks' weights."""


def describe_environment(device: torch.device) -> dict[str, object]:
    """Return versions, commit and device, as JSON values."""
    return {"versions": package_versions(), "git_commit": git_commit(), "device": machine_name(device)}
