"""`ldm-ae inspect`."""

from __future__ import annotations

import argparse
import json

from ldm_ae.commands._options import add_config
from ldm_ae.commands.interface import Command
from ldm_ae.core.errors import UserError
from ldm_ae.core.terminal import ProgressDisplay, lines_of


class Inspect(Command):
    """Description of a folder or single file. An invalid one raises UserError, so that the exit status shows it."""

    name = "inspect"
    summary = "Describe a model, pipeline, checkpoint, run, store or prior, and report whether it is valid."
    order = 80

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the path."""
        parser.add_argument(
            "path", metavar="PATH", help="a model or pipeline folder, single .safetensors file of weights, run "
            "directory, checkpoint, latent store, or prior over codes"
        )  # fmt: skip
        add_config(parser)
        parser.add_argument("--json", action="store_true", help="print the description as JSON")

    def run(self, args: argparse.Namespace) -> None:
        """Print the description."""
        from ldm_ae.commands._inspection import inspect_path

        with ProgressDisplay("checking", None, unit="checks", images_per_unit=None) as progress:
            found = inspect_path(args.path, config=args.config, progress=progress)
        if args.json:
            print(json.dumps(found, indent=2))
        else:
            print("\n".join(lines_of(found)))
        if found["problems"]:
            raise UserError(f"{args.path} is not valid: {found['problems'][0]}")
