"""Recipes and scripts of the project, in a checkout and in an installed package alike."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def recipe(name: str) -> Path:
    """A YAML file of `configs/`."""
    return _find("configs", "recipes", name)


def script(name: str) -> Path:
    """A file of `scripts/`."""
    return _find("scripts", "scripts", name)


def _find(checkout: str, installed: str, name: str) -> Path:
    for path in (_PACKAGE.parent / checkout / name, _PACKAGE / installed / name):
        if path.is_file():
            return path
    raise AssertionError(f"{name} is missing from this installation of ldm_ae")
