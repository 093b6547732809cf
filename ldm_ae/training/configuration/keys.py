"""The keys of a run's configuration, read from the source code of its dataclasses without importing them.

The import of the dataclasses imports torch, which takes seconds. A misspelt option is refused by this list in less than
one; the parser, which has the same keys (a test compares them), then checks everything else.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ldm_ae.core import registry

ROOT = ("ldm_ae.training.configuration.parsing", "RunConfig")
"""Module and name of the dataclass of all keys. A nested dataclass must be imported from the module that defines it."""

CLASS_KEYS = (
    "model", "quantizer", "regularizer", "discriminator", "discriminator_aids", "reconstruction", "errors",
    "perceptual", "losses", "adversarial", "features", "view",
)  # fmt: skip
"""The last parts of the keys whose value is a registered class, with `class_path` and `init_args`."""

CHAINS = {"regularizer": ("Chain", "regularizers")}
"""The class that stands for a list of classes under one of these keys, and its argument with the list."""

LIST_KEYS = ("discriminator_aids", "errors", "losses")
"""Those of `CLASS_KEYS` whose value is a list of classes. A name alone is a list of one."""

OPTIMIZER_KEYS = ("optimizer", "discriminator_optimizer")
"""The groups whose `class_path` names an optimizer. The group's name alone sets it too: `--optimizer adamw`."""

RENAMED = {"data.bad_share": "data.max_bad_fraction"}
"""The renamed keys of a configuration: new names by old names."""

OF_THE_RUN = (
    "out", "seed", "model", "training.precision", "training.compile", "training.keep_checkpoints",
    "training.trackers", "training.project", "training.run_name",
)  # fmt: skip
"""The keys that all phases of a run share; a phase may change every other key."""

PHASES = "phases"
"""The key of the list of phases."""

PARSERS_OWN = ("config", "print_config", "help", "h")
"""Options that are not keys."""

_COMPONENTS = ("models/adapters", "quantizers", "regularizers", "discriminators", "losses", "features", "images/views")
_MAPPINGS = ("Mapping[", "dict[", "Pixels")
"""Beginnings of annotations of mappings."""
_OF_A_PHASE = re.compile(r"phases\.(\d+)\.(.+)", re.DOTALL)
_OF_A_CLASS = {"class_path", "init_args", "dict_kwargs", "help", *CLASS_KEYS}


@cache
def config_keys() -> dict[str, str]:
    """Return the annotation of each key that has a value of its own, by the full key such as `training.max_steps`."""
    return dict(_fields(*ROOT))


@cache
def groups() -> frozenset[str]:
    """Return the keys that hold other keys, such as `training`."""
    return frozenset(key.rpartition(".")[0] for key in config_keys() if "." in key)


def of_phase(number: int, key: str = "") -> str:
    """Return the full name of a key in a phase, such as `phases.2.training.max_steps`."""
    return f"{PHASES}.{number}.{key}"


def split_phase(key: str) -> tuple[int | None, str]:
    """Return the phase's number, from 1, and the key in it for `phases.2.training.max_steps` and its like; None and the
    key itself for any other key."""
    match = _OF_A_PHASE.fullmatch(key)
    return (None, key) if match is None else (int(match[1]), match[2])


@cache
def class_arguments() -> frozenset[str]:
    """Return the names of all arguments of our registered classes, and of the dataclasses among these arguments."""
    return frozenset(name for name, _ in _class_arguments())


@cache
def _mappings() -> frozenset[str]:
    """Return the names of the arguments whose value is a mapping of any keys."""
    found = (name for name, annotation in _class_arguments() if annotation.startswith(_MAPPINGS))
    return frozenset(found) - {*CLASS_KEYS}


@cache
def _class_arguments() -> tuple[tuple[str, str], ...]:
    """Return name and annotation of each argument of our registered classes."""
    found = []
    for folder in _COMPONENTS:
        for path in Path(_package(), folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                    arguments = [*node.args.args, *node.args.kwonlyargs]
                    found += [(item.arg, ast.unparse(item.annotation) if item.annotation else "") for item in arguments]
                elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    found.append((node.target.id, ast.unparse(node.annotation)))
    return tuple(found)


def is_known(key: str) -> bool:
    """Return whether a key of the configuration can exist. Arguments of plugins' classes are not known; all pass."""
    key = split_phase(key)[1]
    if key in config_keys() or key.removesuffix(".help") in groups() or key in RENAMED:
        return True
    parts = key.split(".")
    for length in range(1, len(parts)):
        owner = ".".join(parts[:length])
        if annotation := config_keys().get(owner):
            if parts[length - 1] in CLASS_KEYS:
                inside = parts[length:]
                # The keys of an argument that is a mapping, such as `architecture`, are not arguments.
                first = next((i for i, name in enumerate(inside) if name in _mappings()), len(inside))
                names = set(inside[: first + 1]) - _OF_A_CLASS
                return names <= class_arguments() or bool(registry.plugin_entry_points())
            return annotation.startswith("dict[")
    return False


def _fields(module: str, name: str, prefix: str = "") -> Iterator[tuple[str, str]]:
    tree = _source(module)
    imported = {
        alias.name: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ldm_ae.")
        for alias in node.names
    }
    (fields,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    for field in fields:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            key, annotation = f"{prefix}{field.target.id}", ast.unparse(field.annotation)
            if annotation in imported and _is_dataclass(imported[annotation], annotation):
                yield from _fields(imported[annotation], annotation, f"{key}.")
            else:
                yield key, annotation


def _is_dataclass(module: str, name: str) -> bool:
    found = (node for node in _source(module).body if isinstance(node, ast.ClassDef) and node.name == name)
    return any("dataclass" in ast.unparse(decorator) for node in found for decorator in node.decorator_list)


@cache
def _source(module: str) -> ast.Module:
    path = Path(_package(), *module.split(".")[1:])
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_bytes())


def _package() -> str:
    return str(next(iter(importlib.import_module("ldm_ae").__path__)))
