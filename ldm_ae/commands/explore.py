"""`ldm-ae explore`."""

from __future__ import annotations

import argparse

from ldm_ae.commands._inputs import choose_precision, print_path, square_inputs
from ldm_ae.commands._options import (
    add_compute_options,
    add_images,
    add_images_options,
    add_model,
    add_overwrite,
)
from ldm_ae.commands._stages import Stages
from ldm_ae.commands.interface import Command
from ldm_ae.core.errors import UserError
from ldm_ae.io.files import new_folder, require_new_folder


class Explore(Command):
    """A page that shows what a model's latents hold."""

    name = "explore"
    summary = "Show what a model's latents hold, in one interactive page: map, channels, traversals, samples, codes."
    order = 37

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the model, the images and what is shown."""
        add_model(parser)
        add_images(parser)
        parser.add_argument("--out", default="exploration", help="folder for explore.html and exploration.json "
                            "(default: %(default)s)")  # fmt: skip
        add_overwrite(parser)
        parser.add_argument("--limit", type=int, default=500, help="number of images, evenly spread over IMAGES so "
                            "that every class is among them; their latents are kept in memory (default: "
                            "%(default)s)")  # fmt: skip
        parser.add_argument("--pictures", type=int, default=4, help="number of images that a section shows (default: "
                            "%(default)s)")  # fmt: skip
        parser.add_argument("--prior", metavar="FOLDER", help="prior of scripts/train_code_prior.py, whose samples the "
                            "page shows for a discrete model")  # fmt: skip
        parser.add_argument(
            "--seed", type=int, default=0, help="seed of samples, t-SNE and UMAP (default: %(default)s)"
        )
        add_images_options(parser)
        add_compute_options(parser)

    def run(self, args: argparse.Namespace) -> None:
        """Write explore.html and exploration.json, and print the main numbers."""
        from ldm_ae.data import EvaluationLoader
        from ldm_ae.exploration import EXPLORATION_FILES, explore, spread
        from ldm_ae.priors import load_prior

        require_new_folder(args.out, "the page", own_files=EXPLORATION_FILES, overwrite=args.overwrite)
        for name, value, least in (("limit", args.limit, 1), ("pictures", args.pictures, 1), ("seed", args.seed, 0)):
            if value < least:
                raise UserError(f"--{name} is {value}; it must be at least {least}")
        with new_folder(args.out) as folder:
            choose_precision(args)
            prior = None if args.prior is None else load_prior(args.prior)
            model, source, transform = square_inputs(args)
            chosen = spread(len(source), args.limit)
            loader = EvaluationLoader(
                source, transform, batch_size=args.batch_size, workers=args.workers,
                max_bad_fraction=args.max_bad_fraction, indices=chosen,
            )  # fmt: skip
            with Stages() as progress:
                found = explore(
                    model, loader, count=len(chosen), source=args.images, transform_description=transform.describe(),
                    model_name=str(args.model), classes=source.account().classes, prior=prior, pictures=args.pictures,
                    seed=args.seed, precision=args.precision, device=args.device, batch_size=args.batch_size,
                    progress=progress,
                )  # fmt: skip
            page = found.write(folder)
            print("\n".join([*found.lines(), *source.account().lines()]))
            print_path("page", page)
