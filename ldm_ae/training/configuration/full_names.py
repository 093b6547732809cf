"""Short and old names in a configuration, replaced by those that the run records.

`objective.perceptual: lpips` becomes the class path of `LPIPS`, `optimizer: adamw` the `class_path` torch.optim.AdamW,
`precision: no` fp32, a list of regularizers a `Chain`, and a renamed key its new name. All apply to files and to the
command line.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from ldm_ae.core.deprecation import rename_arguments, rename_keys, warn_renamed
from ldm_ae.core.errors import UserError, printable
from ldm_ae.core.registry import Registry
from ldm_ae.discriminators import DISCRIMINATOR_AIDS, DISCRIMINATORS
from ldm_ae.features import FEATURE_NETWORKS
from ldm_ae.images.views import VIEWS
from ldm_ae.losses import ADVERSARIAL_LOSSES, PERCEPTUAL_LOSSES, RECONSTRUCTION_LOSSES
from ldm_ae.models import AUTOENCODERS
from ldm_ae.quantizers import QUANTIZERS
from ldm_ae.regularizers import REGULARIZERS
from ldm_ae.training.configuration.keys import CHAINS, CLASS_KEYS, LIST_KEYS, OPTIMIZER_KEYS, PHASES, RENAMED, groups
from ldm_ae.training.optimizers import optimizer_path

REGISTRIES: dict[str, Registry[Any]] = dict(
    zip(
        CLASS_KEYS,
        (
            AUTOENCODERS, QUANTIZERS, REGULARIZERS, DISCRIMINATORS, DISCRIMINATOR_AIDS, RECONSTRUCTION_LOSSES,
            RECONSTRUCTION_LOSSES, PERCEPTUAL_LOSSES, PERCEPTUAL_LOSSES, ADVERSARIAL_LOSSES, FEATURE_NETWORKS,
            VIEWS,
        ),
        strict=True,
    )
)  # fmt: skip
"""The registry in which a configuration's class is looked up, by the last part of its key."""

_PRECISION = "training.precision"


def full_names(arguments: Sequence[str]) -> list[str]:
    """Return command-line arguments with full names; a file with short or old names is replaced by its content.

    Raises:
        UserError: No optimizer has the given name.
    """
    found: list[str] = []
    rest = rename_arguments(arguments, RENAMED)
    while rest:
        argument = rest.pop(0)
        option, equals, value = argument.partition("=")
        key = option.removeprefix("--")
        if not option.startswith("--") or (not equals and (not rest or rest[0].startswith("--"))):
            if key.endswith(".help") and (registry := REGISTRIES.get(key.split(".")[-2])) is not None:
                names = ", ".join(cls.__name__ for cls in registry.classes())
                raise UserError(f"--{key} takes the name of a class: {names}")
            found.append(argument)
            continue
        value = value if equals else rest.pop(0)
        following: list[str] = []
        if key == "config":
            value, following = _of_file(value)
        else:
            value = _of_value(key, value)
        may_be_name = key in OPTIMIZER_KEYS and not value.endswith((".yaml", ".yml"))
        if key in groups() and not (may_be_name or value.startswith("{") or Path(value).is_file()):
            raise UserError(f"--{key}: no such configuration file: {printable(value)}")
        if key in OPTIMIZER_KEYS and isinstance(named := _optimizer(key, value), dict):
            option, value = f"{option}.class_path", named["class_path"]
        found += [*([f"{option}={value}"] if equals else [option, value]), *following]
    return found


def _of_file(path: str) -> tuple[str, list[str]]:
    """Return the path, or the content as JSON where names in it are short or old; and options that follow it."""
    if not Path(path).is_file():
        return path, []
    content = get_loader("yaml")(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        return path, []
    before = json.dumps(content, default=str)
    content.pop(PHASES, None)  # `phases.py` reads them
    content, options = full_names_in(content, path)
    after = json.dumps(content, default=str)
    return path if after == before else after, options


def full_names_in(content: dict[str, Any], place: str) -> tuple[dict[str, Any], list[str]]:
    """Return the keys of a file with full names, and options that follow it; `place` names it in warnings."""
    content = copy.deepcopy(content)
    for old in rename_keys(content, RENAMED):
        warn_renamed(f"{old} of {place}", RENAMED[old])
    _replace(content, "", place)
    # jsonargparse takes a `class_path` that stands alone for a class in place of the dataclass.
    alone = [key for key in OPTIMIZER_KEYS if isinstance(content.get(key), dict) and [*content[key]] == ["class_path"]]
    return content, [f"--{key}.class_path={content.pop(key)['class_path']}" for key in alone]


def _of_value(key: str, value: str) -> str:
    """Return the value of an option with full names."""
    appended = key.endswith("+")
    leaf = key.removesuffix("+").rpartition(".")[2]
    if leaf in ("class_path", "help"):
        owner = key.rpartition(".")[0].rpartition(".")[2]
        if leaf == "help" and owner in REGISTRIES:
            return REGISTRIES[owner].of_path(_class_name(owner, value)).__name__
        if owner in OPTIMIZER_KEYS:
            return optimizer_path(value)
        return _class_name(owner, value) if owner in REGISTRIES else value
    is_list = (leaf in LIST_KEYS or leaf in CHAINS) and value.startswith("[")
    if leaf in REGISTRIES and not (value.startswith("{") or is_list):
        name = _class_name(leaf, value)
        return f"[{name}]" if leaf in LIST_KEYS and not appended else name
    if key == _PRECISION:
        return _precision(value, f"--{key} no")
    if value.startswith("{") or is_list:
        content = _loaded(key, value)
        if isinstance(content, dict | list):
            wrapped = {leaf: content}
            _replace(wrapped, f"{key.rpartition('.')[0]}." if "." in key else "", f"--{key}")
            return json.dumps(wrapped[leaf], default=str)
    return value


def _replace(content: dict[str, Any], prefix: str, place: str) -> None:
    """Replace the names in a mapping of keys, and lists of classes, in place."""
    for name, value in content.items():
        key = f"{prefix}{name}"
        leaf = key.rpartition(".")[2]
        if leaf in CHAINS and isinstance(value, list):
            content[name] = value = _chain(leaf, value, place)
        if leaf in REGISTRIES and isinstance(value, str):
            content[name] = [_class_name(leaf, value)] if leaf in LIST_KEYS else _class_name(leaf, value)
        elif leaf in REGISTRIES and isinstance(value, list):
            for i, item in enumerate(value):
                if isinstance(item, str):
                    value[i] = _class_name(leaf, item)
                elif isinstance(item, dict):
                    _replace(item, f"{key}.", place)
        elif leaf == "class_path" and isinstance(value, str):
            owner = key.rpartition(".")[0].rpartition(".")[2]
            if owner in REGISTRIES:
                content[name] = _class_name(owner, value)
            elif owner in OPTIMIZER_KEYS:
                content[name] = optimizer_path(value)
        elif key in OPTIMIZER_KEYS and isinstance(value, str):
            content[name] = _optimizer(key, value)
        elif key == _PRECISION:
            content[name] = _precision(value, f"{key}: no of {place}")
        elif isinstance(value, dict):
            _replace(value, f"{key}.", place)


def _chain(key: str, items: list[Any], place: str) -> dict[str, Any]:
    """Return the content for a list of classes, each a name or a mapping with `class_path`.

    Raises:
        UserError: An element is neither, or no class has its name.
    """
    cls, argument = CHAINS[key]
    classes = []
    for item in items:
        one = {"class_path": item} if isinstance(item, str) else item
        if not isinstance(one, dict) or not isinstance(one.get("class_path"), str):
            raise UserError(
                f"{key} of {place}: expected a list of names and mappings with class_path, got {printable(str(item))}"
            )
        if REGISTRIES[key].by_short_name(one["class_path"]) is None:
            REGISTRIES[key].of_path(one["class_path"])  # refuses what is not one
        _replace({key: one}, "", place)
        classes.append(one)
    return {"class_path": cls, "init_args": {argument: classes}}


def _class_name(key: str, name: str) -> str:
    """Return the class's name for a short name; any other name as it is.

    jsonargparse replaces the class's name by the class path, or refuses what is not one.
    """
    cls = REGISTRIES[key].by_short_name(name)
    return name if cls is None else cls.__name__


def _loaded(key: str, value: str) -> Any:
    """Return the content of a value in braces."""
    try:
        return get_loader("yaml")(value)
    except yaml.YAMLError as error:
        why = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UserError(f"--{key}: {printable(value)} is not valid YAML: {why}") from error


def _optimizer(key: str, value: str) -> str | dict[str, str]:
    """Return the group's content for an optimizer's name; a file's path, or more content than that, as it is."""
    if value.startswith("{"):
        content = _loaded(key, value)
        alone = isinstance(content, dict) and set(content) == {"class_path"}
        return _optimizer(key, str(content["class_path"])) if alone else value
    if Path(value).is_file():
        return value
    return {"class_path": optimizer_path(value)}


def _precision(value: Any, old: str) -> Any:
    """Return fp32 for Accelerate's name of it, which YAML reads as false."""
    if value is not False and value != "no":
        return value
    warn_renamed(old, "fp32")
    return "fp32"
