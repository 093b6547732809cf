"""The interface of commands, and the parser of their options."""

from __future__ import annotations

import argparse
import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NoReturn

PROGRAM = "ldm-ae"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line and suggest the nearest option for an unknown one."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        if unknown := re.match(r"unrecognized arguments: (--[\w-]+)", message):
            known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
            if near := difflib.get_close_matches(unknown[1], known, n=1):
                message += f"; did you mean {near[0]}?"
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


class Command(ABC):
    """A command of `ldm-ae`: one file of this folder, or a class in a plugin's module.

    Listing the commands and parsing their options must take less than a second. Therefore the module of a command
    imports torch and everything that imports torch inside `run`.

    A command that writes into a folder checks it first with `ldm_ae.io.files.require_new_folder`, and prints the path
    of its result last, with `ldm_ae.commands._inputs.print_path`.
    """

    name: ClassVar[str]
    """The name that the user types. For a file of this folder it is the file's name, with hyphens for underscores; a
    file that is named after a Python keyword ends with an underscore."""
    summary: ClassVar[str]
    """One sentence that begins `--help` of the command and describes it in the list of commands."""
    order: ClassVar[int] = 1000
    """Position in the list of commands. Commands with equal numbers are in alphabetical order."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options. The default adds none."""
        del parser

    @abstractmethod
    def run(self, args: argparse.Namespace) -> int | None:
        """Run the command.

        Args:
            args: The parsed options.

        Returns:
            The exit status; None for 0.

        Raises:
            UserError: The user can fix the problem. The command line prints the message and exits with status 2.
            RunError: The machine failed. The command line prints the message and exits with status 1.
        """

    def execute(self, arguments: Sequence[str]) -> int | None:
        """Parse the arguments after the command's name, then `run`. Options may stand between positional arguments.

        Raises:
            SystemExit: The options are invalid, or `--help` is among them.
        """
        parser = Parser(prog=f"{PROGRAM} {self.name}", description=self.summary)
        self.add_arguments(parser)
        return self.run(parser.parse_intermixed_args(list(arguments)))
