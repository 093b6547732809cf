"""`ldm-ae recipes`."""

from __future__ import annotations

import argparse

from ldm_ae.commands.interface import PROGRAM, Command
from ldm_ae.core.resources import recipe_summary, recipes


class Recipes(Command):
    """List of the packaged recipes."""

    name = "recipes"
    summary = "List the configurations that come with ldm_ae, which train --config takes by name."
    order = 25

    def run(self, args: argparse.Namespace) -> None:
        """Print a line for each recipe, then how to use one and where the files are."""
        del args
        found = recipes()
        width = max(map(len, found)) + 2
        for name, path in found.items():
            print(f"{name:<{width}}{recipe_summary(path)}")
        print(f"\nTrain with one: {PROGRAM} train --config kl_f8 --data.train IMAGES --out runs/mine")
        print(f"Edit a copy of one: the files are in {next(iter(found.values())).parent}")
