"""Reading of a diffusers model folder, with a one-line error for each kind of damage."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from ldm_ae.core.errors import UserError, printable, reason
from ldm_ae.core.nearest import nearest_name, nearest_path
from ldm_ae.core.resources import shipped_models
from ldm_ae.io.files import read_json
from ldm_ae.models.loading.checkpoints import find_named
from ldm_ae.models.loading.hub_names import PREFIX, SUBFOLDERS, is_hub_name
from ldm_ae.models.scaling import settle_factor

WEIGHTS = "diffusion_pytorch_model.safetensors"
_MOST_LAYERS, _MOST_ENTRIES, _LARGEST_SIZE, _MOST_NAMES = 64, 1024, 2**16, 6
_VECTORS, _MOST_CHANNELS = ("latents_mean", "latents_std"), 2**16
ModelT = TypeVar("ModelT")


def find_folder(name: str | Path) -> Path:
    """Return the path that `name` denotes: an existing path, a shipped model, or a checkpoint by its name in a run.

    A path that does not exist and denotes none of these is returned as it is.

    Raises:
        UserError: `name` is `RUN@NAME`, and there is no such run, or no such valid checkpoint in it.
    """
    path = Path(name)
    if str(name).startswith(PREFIX):
        return path
    if (checkpoint := find_named(name)) is not None:
        return checkpoint
    return path if path.exists() else shipped_models().get(str(name), path)


def suggestion(path: Path) -> str:
    """Return a hint with the nearest existing names: a path, or a shipped model, or those that there are."""
    shipped = shipped_models()
    near = nearest_name(str(path), shipped) if len(path.parts) == 1 else None
    if (found := near or nearest_path(path)) is not None:
        return f"; did you mean {found}?"
    hint = ""
    if path.parent != Path(path.anchor or ".") and path.parent.is_dir() and os.access(path.parent, os.R_OK | os.X_OK):
        beside = sorted(item.name for item in path.parent.iterdir() if item.is_dir() and item.name[0] != ".")
        some = [*beside[:_MOST_NAMES], *(["..."] if len(beside) > _MOST_NAMES else [])]
        hint = f"; {path.parent} has {', '.join(some)}" if some else ""
    elif len(path.parts) > 1 and not Path(path.parts[0]).exists():
        hint = f"; there is no folder {path.parts[0]}"
    may_be_on_hub = len(path.parts) == 2 and path.parent.is_dir() and not path.is_absolute()
    hub = f"; on the Hugging Face hub it would be {PREFIX}{path}" if may_be_on_hub else ""
    return f"{hint}; the shipped models are {' and '.join(shipped)}{hub}"


def resolve_model_folder(name: str | Path) -> Path:
    """Return the diffusers folder that MODEL denotes; averaged (EMA) weights take precedence over raw ones.

    A model folder denotes itself, a pipeline its `vae/`, a checkpoint its `ema/` (`model/` without EMA), a run its
    newest exported `model/`, and `RUN@best`, `RUN@last` or `RUN@STEP` a checkpoint of the run. A name that is not a
    path may be a shipped model's. The hub is not asked.

    Raises:
        UserError: Nothing matches; the message gives the nearest names.
    """
    folder = find_folder(name)
    if not folder.exists():
        raise UserError(f"no such model: {folder}{suggestion(folder)}")
    if folder.is_file():
        raise UserError(f"{folder} is a file, not a model folder; convert it with: ldm-ae import {folder} OUT")
    for candidate in (folder, folder / "ema", folder / "model", *(folder / part for part in SUBFOLDERS[1:])):
        if (candidate / "config.json").is_file():
            return candidate
    raise UserError(
        f"{folder} is not a model: it is neither a diffusers folder (config.json), nor a run or checkpoint with model/ "
        "in it, nor a pipeline with vae/"
    )


def local_folder(name: str | Path) -> Path:
    """Return `resolve_model_folder(name)`, or for a hub name its folder in the cache, downloaded if necessary.

    Raises:
        UserError: Nothing matches, or the name could not be looked up.
    """
    text = str(name)
    if text.startswith(PREFIX) or (not find_folder(name).exists() and is_hub_name(text)):
        from ldm_ae.models.loading.hub import hub_folder

        return hub_folder(text, "" if text.startswith(PREFIX) else suggestion(Path(text)).removeprefix("; "))
    return resolve_model_folder(name)


def read_config(folder: Path) -> dict[str, object]:
    """Read the config.json of a model folder; UserError if it is missing or does not belong to a diffusers model."""
    path = folder / "config.json"
    if not folder.is_dir():
        raise UserError(f"no such model: {folder}{suggestion(folder)}")
    if not path.is_file():
        raise UserError(f"{folder} is not a model folder: it has no config.json")
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict) or "_class_name" not in config:
        raise UserError(f"{path} is not the configuration of a diffusers model: it has no _class_name")
    if wrong := _wrong_size(config):
        raise UserError(f"{path} is not a valid configuration: {wrong}")
    return config


def _wrong_size(config: dict[str, Any]) -> str | None:
    """Return a message about the first impossible size, or None. diffusers compares shapes only after a slow build."""
    layers = _as_list(config.get("layers_per_block", 1))  # one number for each block in some classes
    if any(type(number) is not int or not 1 <= number <= _MOST_LAYERS for number in layers):
        return f"layers_per_block must be from 1 to {_MOST_LAYERS}"
    for key, value in config.items():
        most = _MOST_CHANNELS if key in _VECTORS else _MOST_ENTRIES
        if isinstance(value, list) and len(value) > most:
            return f"{printable(key)} has more than {most} entries"
    sizes = config.get("sample_size", 1)
    if any(type(size) is not int or not 1 <= size <= _LARGEST_SIZE for size in _as_list(sizes)):
        return f"sample_size must be from 1 to {_LARGEST_SIZE}"
    for key in _VECTORS:
        if not isinstance(config.get(key), list | type(None)):
            return f"{key} must be a list"
    return None


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) and value else [value]


def read_model_folder(cls: type[ModelT], name: str | Path) -> ModelT:
    """Load the model of class `cls` from a folder, a shipped model or a hub name, in float32.

    The factor that earlier versions wrote beside vectors becomes 1, its intended value (`settle_factor`).

    Raises:
        UserError: No such folder, no configuration, no safetensors weights, weights that do not fit, or a hub name
            that could not be downloaded.
    """
    from diffusers.utils import logging as diffusers_logging

    folder, loader = local_folder(name), cast(Any, cls)
    config = read_config(folder)
    if not (folder / WEIGHTS).is_file() and not list(folder.glob("diffusion_pytorch_model*.safetensors*")):
        raise UserError(f"{folder} has a config.json but no weights ({WEIGHTS}); pickled weights are not read")
    if config["_class_name"] != cls.__name__:
        raise UserError(f"{folder} holds a {printable(config['_class_name'])}, not a {cls.__name__}")
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()  # diffusers warns of weights that do not fit; here they are an error
    try:
        model, info = loader.from_pretrained(
            str(folder), use_safetensors=True, torch_dtype=torch.float32, local_files_only=True,
            output_loading_info=True,
        )  # fmt: skip
    except Exception as error:
        raise UserError(f"{folder} cannot be loaded as {cls.__name__}: {reason(error)}") from error
    finally:
        diffusers_logging.set_verbosity(verbosity)
    model.register_to_config(_name_or_path="")  # a path on this machine is meaningless where the model is saved next
    settle_factor(model)
    for words, keys in (("no", info["missing_keys"]), ("an unknown", info["unexpected_keys"])):
        if keys:
            raise UserError(f"{folder} has {words} weight {printable(min(keys))}; its configuration does not fit")
    return model
