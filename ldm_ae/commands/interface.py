"""The interface of commands, and the parser of their options."""

from __future__ import annotations

import argparse
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NoReturn

from ldm_ae.core.nearest import nearest_name

PROGRAM = "ldm-ae"


_OPTIONS_ELSEWHERE = {
    "--size": "image-size img-size input-size resolution height width",
    "--workers": "num-workers dataloader-num-workers num-proc threads",
    "--batch-size": "bs batch train-batch-size eval-batch-size per-proc-batch-size per-device-train-batch-size",
    "--precision": "mixed-precision half amp fp16 bf16 torch-dtype dtype",
    "--steps": "max-steps max-train-steps num-steps train-steps iterations",
    "--learning-rate": "lr",
    "--out": "output output-dir outdir out-dir save-dir save-path",
    "--limit": "num-samples num-images max-images max-samples",
    "--trackers": "report-to log-with logger wandb tensorboard",
    "--overwrite": "force exist-ok",
    "--folder": "dry-run",
    "--device": "gpu cuda cpu gpus",
    "--autoencoder": "vae pretrained-vae pretrained-model-name-or-path",
    "--store": "data data-path data-dir dataset latents",
    "--checkpoint-every": "save-every checkpointing-steps save-steps ckpt-every",
    "--log-every": "logging-steps print-freq",
}
"""For an option of ours, the names that other programs give to it."""
_OURS = {name: ours for ours, names in _OPTIONS_ELSEWHERE.items() for name in names.split()}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line and suggest an option for an unknown one: by meaning, or else the nearest."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        if unknown := re.match(r"unrecognized arguments: --([\w-]+)", message):
            known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
            ours = _OURS.get(unknown[1].lower().replace("_", "-"))
            near = ours if ours in known else nearest_name(f"--{unknown[1]}", known)
            if near is not None:
                message += f"; did you mean {near}?"
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
