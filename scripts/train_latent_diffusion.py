"""Train a small diffusion model on a latent store and save a pipeline that diffusers opens without our code.

    python scripts/train_latent_diffusion.py --store STORE --autoencoder MODEL --out DIR --model dit --objective flow
    accelerate launch scripts/train_latent_diffusion.py ...

    DiffusionPipeline.from_pretrained("DIR/pipeline")          # then pipeline(batch_size=4)         for unet
                                                               # and  pipeline(class_labels=[0, 1])  for dit

Rerun the same command to resume after any interruption; Ctrl-C saves first. `ldm_ae/training/diffusion` has the
networks, the objectives and the loop. A store with moments provides new samples in every epoch.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any, get_args, get_type_hints

from docstring_parser import parse_from_object

from ldm_ae.commands.interface import Parser
from ldm_ae.core.errors import exit_status
from ldm_ae.training.diffusion import DiffusionConfig, train_diffusion
from ldm_ae.training.diffusion.config import option


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the options: those of `DiffusionConfig`, and the three folders."""
    parser = Parser(
        description="Train a latent diffusion model on a latent store. Rerun the same command to resume.",
        usage="%(prog)s --store STORE --autoencoder MODEL --out DIR [options]",
    )
    parser.add_argument("--store", required=True, help="folder that `ldm-ae encode` wrote")
    parser.add_argument(
        "--autoencoder", required=True, metavar="MODEL", help="the model that encoded it: a run or diffusers folder"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="run directory; its pipeline/ is the result")
    types = get_type_hints(DiffusionConfig)
    words = {entry.arg_name: entry.description for entry in parse_from_object(DiffusionConfig).params}
    for field in fields(DiffusionConfig):
        kind: dict[str, Any] = {"type": types[field.name], "metavar": "N" if types[field.name] is int else "X"}
        if choices := [choice for choice in get_args(types[field.name]) if choice is not Ellipsis]:
            kind = {"choices": choices} if isinstance(choices[0], str) else {"nargs": "*", "metavar": "NAME"}
        assert field.default is not MISSING
        shown = " ".join(field.default) if isinstance(field.default, tuple) else field.default
        text = f"{(words[field.name] or '').strip().rstrip('.')} ({shown})"
        parser.add_argument(option(field.name), default=field.default, help=text, **kind)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status, as for `ldm-ae`."""

    def command() -> None:
        args = vars(build_parser().parse_args(argv))
        places = {name: args.pop(name) for name in ("store", "autoencoder", "out")}
        folder = train_diffusion(DiffusionConfig(**args | {"trackers": tuple(args["trackers"])}), **places)
        if os.environ.get("RANK", "0") == "0":
            print(f"pipeline: {folder}")

    return exit_status(command, "train_latent_diffusion")


if __name__ == "__main__":
    sys.exit(main())
