"""`ldm-ae quickstart`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ldm_ae.commands.interface import Command


class Quickstart(Command):
    """A run of every step of the toolkit, on real photos and without a network."""

    name = "quickstart"
    summary = "Train, score and use a small autoencoder on real photos, offline."
    order = 10

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the folder and the length."""
        parser.add_argument("--out", default="runs/quickstart", help="folder for all results (default: %(default)s)")
        parser.add_argument("--steps", type=int, help="number of training steps (default: that of the recipe)")

    def run(self, args: argparse.Namespace) -> None:
        """Run all steps."""
        from ldm_ae.commands._quickstart import quickstart

        quickstart(Path(args.out), steps=args.steps)
