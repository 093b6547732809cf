"""Old names that keep working for one minor release, each use with one line that gives the new name."""

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
    """An option under its old name. It is not in the help, and sets what the new name sets.

    Args:
        new: The new option, such as `--max-bad-fraction`.
    """

    def __init__(self, *args: Any, new: str, **kwargs: Any):
        self.new = new
        dest = new.removeprefix("--").replace("-", "_")
        super().__init__(*args, **{**kwargs, "dest": dest, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS})

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 - argparse gives it
        namespace: argparse.Namespace,
        values: Any,
        option: str | None = None,
    ) -> None:
        """See `argparse.Action`."""
        warn_renamed(str(option), self.new)
        setattr(namespace, self.dest, values)


def rename_keys(content: dict[str, Any], renamed: Mapping[str, str]) -> list[str]:
    """Move values of a nested configuration from their old keys to the new ones; the old keys that were there.

    Args:
        content: Changed in place. A key that is there under both names keeps the new name's value.
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
    """Command-line arguments with the new name of each old option, `--old VALUE` or `--old=VALUE`."""
    found = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        new = renamed.get(name.removeprefix("--")) if name.startswith("--") else None
        if new is not None:
            warn_renamed(name, f"--{new}")
        found.append(argument if new is None else f"--{new}{equals}{value}")
    return found


def old_export(package: str, name: str, renamed: Mapping[str, str]) -> str | None:
    """The new name of what `package` exported as `name`, with a FutureWarning; None if it is not an old name."""
    new = renamed.get(name)
    if new is not None:
        warnings.warn(f"{package}.{name} is deprecated; use {package}.{new}", FutureWarning, stacklevel=3)
    return new
