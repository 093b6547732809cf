"""Configurations of networks: config.json of model folders, and those that a user gives for a single file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_ae.core.errors import UserError, printable
from ldm_ae.io.files import require_json
from ldm_ae.models.loading.places import model_place, suggestion

_MOST_LAYERS, _MOST_ENTRIES, _LARGEST_SIZE = 64, 1024, 2**16
_VECTORS, _MOST_CHANNELS = ("latents_mean", "latents_std"), 2**16


def read_config(folder: Path) -> dict[str, object]:
    """Read the config.json of a model folder; UserError if it is missing or does not belong to a diffusers model."""
    path = folder / "config.json"
    if not folder.is_dir():
        raise UserError(f"no such model: {folder}{suggestion(folder)}")
    if not path.is_file():
        raise UserError(f"{folder} is not a model folder: it has no config.json")
    config = _read_mapping(path)
    if "_class_name" not in config:
        raise UserError(f"{path} is not the configuration of a diffusers model: it has no _class_name")
    if wrong := wrong_size(config):
        raise UserError(f"{path} is not a valid configuration: {wrong}")
    return config


def _read_mapping(path: Path) -> dict[str, Any]:
    config = require_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path} is not the configuration of a diffusers model: it has no _class_name")
    return config


def wrong_size(config: Mapping[str, Any]) -> str | None:
    """Return a message about the first impossible size, or None. diffusers compares shapes only after a slow build."""
    layers = _as_list(config.get("layers_per_block", 1))  # one number for each block in some classes
    if any(type(number) is not int or not 1 <= number <= _MOST_LAYERS for number in layers):
        return f"layers_per_block must be from 1 to {_MOST_LAYERS}"
    for key, value in config.items():
        most = _MOST_CHANNELS if key in _VECTORS else _MOST_ENTRIES
        if isinstance(value, list | tuple) and len(value) > most:
            return f"{printable(key)} has more than {most} entries"
    sizes = config.get("sample_size", 1)
    if any(type(size) is not int or not 1 <= size <= _LARGEST_SIZE for size in _as_list(sizes)):
        return f"sample_size must be from 1 to {_LARGEST_SIZE}"
    for key in _VECTORS:
        if not isinstance(config.get(key), list | tuple | type(None)):
            return f"{key} must be a list"
    return None


def _as_list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) and value else [value]


@dataclass(frozen=True, kw_only=True)
class GivenConfig:
    """A configuration that a user gives for a single file, which overrides and completes the inferred one."""

    values: dict[str, Any]
    """The values, without the class and without the keys that describe the file."""
    class_name: str | None = None
    """The class, where the configuration states it."""
    name: str = "config"
    """Name of the configuration in messages."""

    @classmethod
    def read(cls, config: str | Path | Mapping[str, Any] | None) -> GivenConfig:
        """Read a mapping, a JSON file, or the config.json of a model folder (or pipeline, run, ...).

        Raises:
            UserError: There is no such file, or it is not a configuration.
        """
        if config is None:
            return cls(values={})
        if isinstance(config, Mapping):
            found, name = dict(config), "config"
        else:
            path = Path(config)
            if not path.exists() and path.suffix:
                raise UserError(f"no such configuration: {path}{suggestion(path)}")
            path = path if path.is_file() else model_place(config) / "config.json"
            found, name = _read_mapping(path), str(path)
        if wrong := wrong_size(found):
            raise UserError(f"{name} is not a valid configuration: {wrong}")
        class_name = found.get("_class_name")
        if not isinstance(class_name, str | None):
            raise UserError(f"{name}: expected a name as _class_name, got {printable(class_name)}")
        values = {key: value for key, value in found.items() if not key.startswith("_")}
        return cls(values=values, class_name=class_name, name=name)

    def require_class(self, inferred: str, path: Path) -> None:
        """Raise UserError if the configuration is that of another class than the file's."""
        if self.class_name not in (None, inferred):
            raise UserError(
                f"{self.name} is the configuration of a {printable(self.class_name)}, but {path} holds a {inferred}; "
                "give the configuration of this network"
            )
