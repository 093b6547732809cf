"""The check of names in a command line and its configuration files, before anything slow is imported."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ldm_ae.core.errors import UserError, printable
from ldm_ae.training.configuration.config_file import ConfigFile, known_names
from ldm_ae.training.configuration.hints import hint
from ldm_ae.training.configuration.keys import PARSERS_OWN, is_known

_OPTION = re.compile(r"--?[A-Za-z]")


def check_spelling(arguments: Sequence[str]) -> list[ConfigFile]:
    """Check the names of all options, and of all keys in the files that `--config` names.

    Returns:
        The files, for the places in later messages.

    Raises:
        UserError: A name is not known (with what it is here, or the nearest name), or a file is not a configuration.
    """
    files = []
    for option, value in options(arguments):
        if option == "config" and value:
            files.append(ConfigFile(value))
            files[-1].check_keys()
        elif option not in PARSERS_OWN and not is_known(option):
            raise UserError(f"no option is named '{printable(option)}'{hint(option, known_names(option))}")
    return files


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Return whether the parser will print help and exit."""
    names = [name for name, _ in options(arguments)]
    return any(name in ("help", "h") or (name.endswith(".help") and is_known(name)) for name in names)


def options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield name, without its hyphens, and value of each `--option VALUE` and `--option=VALUE`; "" for no value.

    `-lr` and its like are options too, which the parser does not have.
    """
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        name, equals, value = argument.partition("=")
        if _OPTION.match(name):
            plain = name.lstrip("-").removesuffix("+")
            yield plain, value if equals else "" if following.startswith("--") else following
