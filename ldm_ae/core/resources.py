"""Recipes, scripts and trained models of the project, both in a checkout and in an installed package."""

from __future__ import annotations

from pathlib import Path

DEFAULT_MODEL = "kl-f8c4-small"
"""The shipped model that commands use by default."""

_PACKAGE = Path(__file__).resolve().parents[1]


def recipe(name: str) -> Path:
    """Return the path of a YAML file of `configs/`."""
    return _find("configs", "recipes", name)


def script(name: str) -> Path:
    """Return the path of a file of `scripts/`."""
    return _find("scripts", "scripts", name)


def shipped_models() -> dict[str, Path]:
    """Return the folders of the trained models that ship with the package, by name."""
    for folder in _places("checkpoints", "checkpoints"):
        if models := {path.parent.name: path.parent for path in sorted(folder.glob("*/config.json"))}:
            return models
    return {}


def _find(checkout: str, installed: str, name: str) -> Path:
    for folder in _places(checkout, installed):
        if (folder / name).is_file():
            return folder / name
    raise AssertionError(f"{name} is missing from this installation of ldm_ae")


def _places(checkout: str, installed: str) -> tuple[Path, Path]:
    """Return candidate paths, inside the package first: beside an installed package are the folders of others."""
    return _PACKAGE / installed, _PACKAGE.parent / checkout
