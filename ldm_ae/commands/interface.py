"""What a command is, and the parser of its options."""

from __future__ import annotations

import argparse
import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NoReturn

PROGRAM = "ldm-ae"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the nearest option for one that it does not know."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        if unknown := re.match(r"unrecognized arguments: (--[\w-]+)", message):
            known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
            if near := difflib.get_close_matches(unknown[1], known, n=1):
                message += f"; did you mean {near[0]}?"
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


class Command(ABC):
    """A command of `ldm-ae`: one file of this folder, or a class in a plugin's module.

    Listing the commands and parsing their options must take no second. Therefore the module of a command imports torch
    and everything that imports torch inside `run`.
    """

    name: ClassVar[str]
    """What the user types. For a file of this folder it is the file's name, with hyphens for underscores; the file of a
    Python keyword ends with an underscore."""
    summary: ClassVar[str]
    """One sentence that begins `--help` of the command, and stands in the list of commands."""
    order: ClassVar[int] = 1000
    """Place in the list of commands. Commands with equal numbers stand in alphabetical order."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options. There are none by default."""
        del parser

    @abstractmethod
    def run(self, args: argparse.Namespace) -> int | None:
        """Do the work.

        Args:
            args: The parsed options.

        Returns:
            The exit status; None for 0.

        Raises:
            UserError: the user can mend it. The command line prints the message and exits with status 2.
            RunError: the machine failed. The command line prints the message and exits with status 1.
        """

    def execute(self, arguments: Sequence[str]) -> int | None:
        """Parse the words after the command's name, then `run`. Options may stand between positional arguments.

        Raises:
            SystemExit: the options do not parse, or ask for `--help`.
        """
        parser = Parser(prog=f"{PROGRAM} {self.name}", description=self.summary)
        self.add_arguments(parser)
        return self.run(parser.parse_intermixed_args(list(arguments)))
