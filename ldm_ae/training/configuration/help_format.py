"""The layout of `ldm-ae train --help`: a group for each part of a run, and for each key what it does, in few words."""

from __future__ import annotations

import argparse
import re
from typing import Any, Union, get_args, get_origin

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from ldm_ae.core.registry import short_names
from ldm_ae.training.configuration.full_names import REGISTRIES

_METAVARS: dict[Any, str] = {int: "INT", float: "FLOAT", str: "TEXT"}


class KeysFormatter(DefaultHelpFormatter):
    """A formatter that shows types as `INT` after the option, and classes by their short names."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{**kwargs, "max_help_position": 8})

    def add_usage(self, usage: str | None, *args: Any, **kwargs: Any) -> None:
        """Add the usage if it was written by hand: a list of all options is the help itself."""
        if usage is not None:
            super().add_usage(usage, *args, **kwargs)

    def add_argument(self, action: argparse.Action) -> None:
        """Add an option, unless it is another way to give keys (`--data FILE`) or the help of a class."""
        if type(action).__name__ != "_ActionConfigLoad" and not action.dest.endswith(".help"):
            super().add_argument(action)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        hint = getattr(action, "_typehint", None)
        return super()._get_default_metavar_for_optional(action) if hint is None else _metavar(action.dest, hint)

    def _get_help_string(self, action: argparse.Action) -> str:
        if getattr(action, "_typehint", None) is None:
            return action.help or ""
        text = re.sub(r"\bNone\b", "null", " ".join((action.help or "").split()))
        notes = ["required"] if action.required else [f"default: {_shown(action.default)}"]
        registry = REGISTRIES.get(action.dest.rpartition(".")[2])
        if registry is not None:
            text += f" One of {', '.join(short_name(cls) for cls in registry.classes())}."
            notes.append(f"{_help_option(action.dest)} lists the arguments")
        return f"{text} ({'; '.join(notes)})"


def lay_out(parser: ArgumentParser) -> None:
    """Give each group the name of its keys as the title, with what was the title as a description."""
    for key, group in (parser.groups or {}).items():
        if "." in group._group_actions[-1].dest:
            group.title, group.description = key, f"{group.title}."
        else:
            group.title = "run"


def help_of_group(parser: ArgumentParser, group: str) -> str:
    """Return the part of the help that describes the keys of one group."""
    found = re.search(rf"^{group}:\n.*?(?=^\w+:\n|\Z)", parser.format_help(), re.MULTILINE | re.DOTALL)
    assert found is not None, f"every group has a section, {group} too"
    return found[0].rstrip()


def short_name(cls: type[Any]) -> str:
    """Return the shortest name of a registered class."""
    return min((cls.__name__.lower(), *short_names(cls)), key=len)


def _help_option(key: str) -> str:
    """Return the options that print the help of a class; a class inside another needs the outer class first."""
    owner, _, leaf = key.rpartition(".")
    outer = owner.removesuffix(".init_args")
    inside = outer.rpartition(".")[2] in REGISTRIES
    return f"{_help_option(outer)} --{outer}.{leaf}.help NAME" if inside else f"--{key}.help NAME"


def _metavar(key: str, hint: Any) -> str:
    """Return a type in capitals, such as INT, INT|none|null, {NAME: FLOAT}; NAME for a class."""
    if key.rpartition(".")[2] in REGISTRIES:
        return "NAME"
    if get_origin(hint) is Union or type(hint).__name__ == "UnionType":
        return "|".join(_metavar(key, part) for part in get_args(hint))
    if hint is type(None):
        return "null"
    if get_origin(hint) is dict:
        return f"{{NAME: {_metavar(key, get_args(hint)[1])}, ...}}"
    if get_origin(hint) in (list, tuple):
        return f"[{_metavar(key, get_args(hint)[0])}, ...]"
    if get_origin(hint) is not None:  # a Literal
        return "|".join(str(value) for value in get_args(hint))
    return _METAVARS.get(hint, "VALUE" if hint is Any else str(getattr(hint, "__name__", "VALUE")).upper())


def _shown(default: Any) -> str:
    """Return a default as YAML has it, a class by its short name."""
    if isinstance(default, dict) and "class_path" in default:
        name = str(default["class_path"]).rpartition(".")[2]
        classes = (cls for registry in REGISTRIES.values() for cls in registry.classes())
        return next((short_name(cls) for cls in classes if cls.__name__ == name), name)
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
    return str(list(default) if isinstance(default, tuple) else default).replace("'", "")
