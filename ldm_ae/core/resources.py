"""Recipes and trained models of the project, in a checkout and in an installed package, and other packages' folders."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from ldm_ae.core.errors import UserError, printable
from ldm_ae.core.nearest import nearest_name, nearest_path

DEFAULT_MODEL = "kl-f8c16-small"
"""The shipped model that commands use by default."""
_CONFIG = "--config"

_PACKAGE = Path(__file__).resolve().parents[1]


def recipe(name: str) -> Path:
    """Return the path of a YAML file of `configs/`."""
    return _find("configs", "recipes", name)


def recipes() -> dict[str, Path]:
    """Return the packaged recipes, by name (`kl_f8`), in alphabetical order."""
    for folder in _places("configs", "recipes"):
        if found := {path.stem: path for path in sorted(folder.glob("*.yaml"))}:
            return found
    return {}


def recipe_summary(path: Path) -> str:
    """Return the first comment line of a recipe, which summarizes it."""
    with path.open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()


def find_config(value: str) -> Path:
    """Return the file that `--config` names: an existing file, or else the packaged recipe `NAME` or `NAME.yaml`.

    Raises:
        UserError: There is neither; the message gives the nearest file and the nearest recipe.
    """
    path, packaged = Path(value), recipes()
    if path.is_file():
        return path
    if (name := value.removesuffix(".yaml")) in packaged:
        return packaged[name]
    near = [str(found) for found in [nearest_path(path)] if found is not None and found.is_file()]
    if (recipe_name := nearest_name(path.stem, packaged)) is not None:
        near.append(f"the recipe {recipe_name}")
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    what = f"{printable(value)} is a folder" if path.is_dir() else f"no such configuration file: {printable(value)}"
    raise UserError(f"{what}; {hint}`ldm-ae recipes` lists the recipes")


def with_config_paths(arguments: Sequence[str]) -> list[str]:
    """Return command-line arguments in which the value of each `--config` is the path of a file.

    Raises:
        UserError: A value is neither a file nor a recipe.
    """
    found, expected = [], False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if expected:
            found.append(str(find_config(argument)))
        else:
            found.append(f"{_CONFIG}={find_config(value)}" if name == _CONFIG and equals else argument)
        expected = not expected and argument == _CONFIG
    return found


def shipped_models() -> dict[str, Path]:
    """Return the folders of the trained models that ship with the package, by name."""
    for folder in _places("checkpoints", "checkpoints"):
        if models := {path.parent.name: path.parent for path in sorted(folder.glob("*/config.json"))}:
            return models
    return {}


def installed_folder(package: str) -> Path | None:
    """Return the folder of an installed package without importing it, which may take seconds; None without it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def _find(checkout: str, installed: str, name: str) -> Path:
    for folder in _places(checkout, installed):
        if (folder / name).is_file():
            return folder / name
    raise AssertionError(f"{name} is missing from this installation of ldm_ae")


def _places(checkout: str, installed: str) -> tuple[Path, Path]:
    """Return candidate paths, inside the package first: beside an installed package are the folders of others."""
    return _PACKAGE / installed, _PACKAGE.parent / checkout
