"""`ldm-ae outliers`."""

from __future__ import annotations

import argparse

from ldm_ae.commands._inputs import choose_precision, print_path, square_inputs
from ldm_ae.commands._options import (
    add_compute_options,
    add_images,
    add_images_options,
    add_limit,
    add_model,
    add_overwrite,
)
from ldm_ae.commands._stages import Stages
from ldm_ae.commands.interface import Command
from ldm_ae.core.errors import UserError
from ldm_ae.io.files import new_folder, require_new_folder


class FindOutliers(Command):
    """The strangest images of a data set."""

    name = "outliers"
    summary = "List the strangest images of a data set with pictures, by several scores of a model; for cleaning it."
    order = 38

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the model, the sets of images and the scores."""
        add_model(parser)
        add_images(parser)
        parser.add_argument("--out", default="outliers", help="folder for outliers.html, outliers.csv with all scores "
                            "of all images, and outliers.json (default: %(default)s)")  # fmt: skip
        add_overwrite(parser)
        parser.add_argument("--reference", metavar="IMAGES", help="normal images for the scores that compare with a "
                            "data set, typicality and latents (default: IMAGES; with --against, every second one of "
                            "them)")  # fmt: skip
        parser.add_argument("--against", metavar="IMAGES", help="strange images: print the AUROC of each score, with "
                            "IMAGES as the normal ones")  # fmt: skip
        parser.add_argument("--scores", nargs="+", metavar="NAME", default=[], help="scores to compute, given after "
                            "MODEL and IMAGES; the first one ranks the images, and an unknown name lists all "
                            "(default: all that the model has, ranked by the first one among elbo, "
                            "codes and latents)")  # fmt: skip
        parser.add_argument("--prior", metavar="FOLDER", help="prior of scripts/train_code_prior.py, under which the "
                            "codes of a discrete model are scored")  # fmt: skip
        parser.add_argument("--top", type=int, default=20, metavar="N", help="number of the strangest images that are "
                            "listed and shown (default: %(default)s)")  # fmt: skip
        add_limit(parser)
        add_images_options(parser)
        add_compute_options(parser)

    def run(self, args: argparse.Namespace) -> None:
        """Write the page and the tables, and print the strangest images."""
        from ldm_ae.outliers import OUTLIER_FILES, Loading, find_outliers, open_sets
        from ldm_ae.priors import load_prior

        require_new_folder(args.out, "the page", own_files=OUTLIER_FILES, overwrite=args.overwrite)
        for name, value in (("limit", args.limit), ("top", args.top)):
            if value is not None and value < 1:
                raise UserError(f"--{name} is {value}; it must be at least 1")
        with new_folder(args.out) as folder:
            choose_precision(args)
            prior = None if args.prior is None else load_prior(args.prior)
            model, source, transform = square_inputs(args)
            sets = open_sets(args.images, args.reference, args.against, limit=args.limit, source=source)
            loading = Loading(
                transform=transform, batch_size=args.batch_size, workers=args.workers,
                max_bad_fraction=args.max_bad_fraction,
            )  # fmt: skip
            with Stages() as progress:
                found = find_outliers(
                    model, sets, loading, model_name=str(args.model), scores=args.scores, prior=prior, top=args.top,
                    precision=args.precision, device=args.device, progress=progress,
                )  # fmt: skip
            page = found.write(folder)
            print("\n".join([*found.lines(), *sets.images.source.account().lines()]))
            print_path("page", page)
