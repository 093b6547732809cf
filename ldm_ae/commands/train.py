"""`ldm-ae train`."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ldm_ae.commands._inputs import print_path
from ldm_ae.commands.interface import PROGRAM, Command
from ldm_ae.core.errors import UserError
from ldm_ae.core.resources import with_config_paths
from ldm_ae.io.locks import refuse_if_held
from ldm_ae.training.configuration.spelling import asks_for_help, check_spelling, options


class Train(Command):
    """Training of a model. Its options are the configuration's keys, which jsonargparse derives from `RunConfig`."""

    name = "train"
    summary = "Train an autoencoder from a recipe, such as kl_f8, or from your own configuration."
    order = 20

    def execute(self, arguments: Sequence[str]) -> None:
        """Check what needs no slow imports, then `run`."""
        if not arguments:
            raise UserError(
                "train needs a configuration: ldm-ae train --config kl_f8 --data.train IMAGES; "
                "`ldm-ae recipes` lists the names"
            )
        arguments = with_config_paths(arguments)
        if not asks_for_help(arguments):
            check_spelling(arguments)
        if (folder := _run_folder(arguments)) is not None and os.environ.get("WORLD_SIZE", "1") == "1":
            refuse_if_held(folder)
        self.run(argparse.Namespace(arguments=arguments))

    def run(self, args: argparse.Namespace) -> None:
        """Train with `args.arguments`, which jsonargparse parses."""
        from ldm_ae.training.configuration.parsing import config_parser, parse_config

        parser = config_parser(self.summary, described=asks_for_help(args.arguments), prog=f"{PROGRAM} {self.name}")
        config = parse_config(args.arguments, parser)  # ends the process where `--help` is among the arguments
        from ldm_ae.training.run import train_parsed  # imports what training needs, which takes seconds

        folder = train_parsed(config, parser)
        if os.environ.get("RANK", "0") == "0":
            print_path("run", folder)


def _run_folder(arguments: Sequence[str]) -> str | None:
    """Return the folder that `--out`, or the last `--config` with an `out`, names; nothing is checked yet."""
    given = dict(options(arguments))  # of an option that is given twice, the last value
    if "out" in given:
        return given["out"] or None
    if config := given.get("config"):
        text = Path(config).read_text(encoding="utf-8", errors="replace")
        if found := re.search(r"^out:\s*['\"]?([^'\"#\n]+)", text, re.MULTILINE):
            return found[1].strip()
    return None
