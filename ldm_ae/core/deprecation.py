"""Old names that work for one more minor release; each use logs one line with the new name."""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

log = logging.getLogger(__name__)


def warn_renamed(old: str, new: str) -> None:
    """Log that the option or key `old` is deprecated."""
    log.warning("%s is deprecated and will be removed in the next minor release; use %s", old, new)


class RenamedOption(argparse.Action):
    """An option under its old name. It is hidden from the help and sets the value of the new name.

    Args:
        new: The new option, such as `--max-bad-fraction`.
    """

    def __init__(self, *args: Any, new: str, **kwargs: Any):
        self.new = new
        dest = new.removeprefix("--").replace("-", "_")
        super().__init__(*args, **{**kwargs, "dest": dest, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS})

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 - argparse passes it
        namespace: argparse.Namespace,
        values: Any,
        option: str | None = None,
    ) -> None:
        """See `argparse.Action`."""
        warn_renamed(str(option), self.new)
        setattr(namespace, self.dest, values)


def rename_keys(content: dict[str, Any], renamed: Mapping[str, str]) -> list[str]:
    """Move values of a nested configuration from their old keys to the new ones, and return the old keys found.

    Args:
        content: Changed in place. If a key exists under both names, the new name's value is kept.
        renamed: New keys by old ones, such as `data.max_bad_fraction` by `data.bad_share`, in the same mapping.
    """
    found = []
    for old, new in renamed.items():
        owner: Any = content
        *parents, leaf = old.split(".")
        for parent in parents:
            owner = owner.get(parent) if isinstance(owner, dict) else None
        if isinstance(owner, dict) and leaf in owner:
            value = owner.pop(leaf)
            owner.setdefault(new.rpartition(".")[2], value)
            found.append(old)
    return found


def rename_arguments(arguments: Sequence[str], renamed: Mapping[str, str]) -> list[str]:
    """Return command-line arguments with old options renamed, given as `--old VALUE` or `--old=VALUE`."""
    found = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        new = renamed.get(name.removeprefix("--")) if name.startswith("--") else None
        if new is not None:
            warn_renamed(name, f"--{new}")
        found.append(argument if new is None else f"--{new}{equals}{value}")
    return found


def old_export(package: str, name: str, renamed: Mapping[str, str]) -> str | None:
    """Return the new name of `package`'s old export `name`, with a FutureWarning; None if it is not an old name."""
    new = renamed.get(name)
    if new is not None:
        warnings.warn(f"{package}.{name} is deprecated; use {package}.{new}", FutureWarning, stacklevel=3)
    return new
