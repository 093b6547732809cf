"""Recipes, scripts and trained models of the project, in a checkout and in an installed package alike."""

from __future__ import annotations

from pathlib import Path

DEFAULT_MODEL = "kl-f8c4-small"
"""The shipped model that commands use where none is named."""

_PACKAGE = Path(__file__).resolve().parents[1]


def recipe(name: str) -> Path:
    """A YAML file of `configs/`."""
    return _find("configs", "recipes", name)


def script(name: str) -> Path:
    """A file of `scripts/`."""
    return _find("scripts", "scripts", name)


def shipped_models() -> dict[str, Path]:
    """The folders of the trained models that come with the package, by name."""
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
    """Inside the package first: beside an installed one lie the folders of others."""
    return _PACKAGE / installed, _PACKAGE.parent / checkout
