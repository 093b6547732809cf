"""`ldm-ae compare`."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm_ae.commands._inputs import (
    choose_precision,
    chosen_view,
    decoding_options,
    metric_networks,
    option_of,
    print_notes,
    print_path,
    square_options,
)
from ldm_ae.commands._options import (
    NATIVE,
    add_compute_options,
    add_images,
    add_images_options,
    add_limit,
    add_metrics_options,
    add_overwrite,
)
from ldm_ae.commands._stages import Stages
from ldm_ae.commands.interface import Command
from ldm_ae.core.errors import UserError

if TYPE_CHECKING:
    from ldm_ae.comparison import Contestant, DiffusionPlan

_CODECS = ("jpeg", "webp", "avif")


class Compare(Command):
    """Comparison of several models on the same images."""

    name = "compare"
    summary = "Compare models on images: scores, pictures, rates and how well latents diffuse, in one page."
    order = 35

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the models, the images and what is measured."""
        parser.add_argument("models", metavar="MODEL", nargs="+", help="models, each as in the other commands: a "
                            "folder, a single .safetensors file, a run directory (its training curves are drawn too), "
                            "RUN@best, hf:OWNER/NAME, or the name of a shipped model; NAME=MODEL gives it a name on "
                            "the page")  # fmt: skip
        add_images(parser)
        parser.add_argument("--out", default="comparison", help="folder for compare.html, metrics.json and the tables; "
                            "the same command resumes there, and more models can be added (default: "
                            "%(default)s)")  # fmt: skip
        add_overwrite(parser)
        add_limit(parser)
        add_metrics_options(parser, default="compare")
        parser.add_argument("--baseline", nargs="+", choices=_CODECS, default=[], metavar="CODEC", help="measure image "
                            "codecs at the models' rates too: jpeg, webp and avif, given after MODEL and "
                            "IMAGES")  # fmt: skip
        parser.add_argument("--diffusion", type=int, metavar="STEPS", help="train the same small diffusion network for "
                            "STEPS steps on the latents of each model, and score its loss and samples; 1000 to 4000 "
                            "rank models, in minutes on a CPU with --size 64 or 128")  # fmt: skip
        parser.add_argument("--diffusion-images", metavar="IMAGES", help="with --diffusion: images to train that "
                            "network on, scored on IMAGES (default: three quarters of IMAGES, scored on the "
                            "rest)")  # fmt: skip
        parser.add_argument("--pictures", type=int, default=6, help="number of images on the page (default: "
                            "%(default)s)")  # fmt: skip
        parser.add_argument("--figures", choices=("pdf", "png"), help="also write the charts and pictures as files of "
                            "this kind for papers, into figures/")  # fmt: skip
        add_images_options(parser, native=True)
        add_compute_options(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Write the results and the page, and print the main scores. The status is 2 if a model failed."""
        try:
            return _run(args)
        except KeyboardInterrupt:
            if Path(args.out).is_dir():
                print_notes([f"finished results are kept in {args.out}; the same command resumes there"])
            raise


def _run(args: argparse.Namespace) -> int:
    from ldm_ae.comparison import (
        CompareConfig,
        compare,
        comparison_folder,
        require_matplotlib,
        write_comparison,
    )
    from ldm_ae.core.allocator import keep_freed_memory
    from ldm_ae.core.devices import pick_device
    from ldm_ae.data import open_source

    _check(args)
    if args.figures is not None:
        require_matplotlib()
    contestants = _contestants(args.models)
    with comparison_folder(args.out, overwrite=args.overwrite) as folder:
        choose_precision(args)
        keep_freed_memory(pick_device(args.device))
        source = open_source(args.images)
        config = CompareConfig(
            size=args.size, limit=args.limit, metrics=args.metrics, networks=metric_networks(args),
            transform=_transform_options(args), precision=args.precision, device=args.device,
            batch_size=args.batch_size, workers=args.workers, max_bad_fraction=args.max_bad_fraction,
            pictures=args.pictures, codecs=args.baseline, diffusion=_diffusion(args), view=chosen_view(args),
        )  # fmt: skip
        with Stages() as progress:
            found = compare(contestants, source, folder, config, source_name=args.images, progress=progress)
        page = write_comparison(found, folder, figures=args.figures)
    print("\n".join([repr(found), *source.account().lines()]))
    print_path("page and tables", page)
    if found.failed:
        names = ", ".join(found.failed)
        print(f"ldm-ae: error: {len(found.failed)} of {len(contestants)} models failed: {names}", file=sys.stderr)
    return 2 if found.failed else 0


def _check(args: argparse.Namespace) -> None:
    """Refuse options that are missing or exclude each other, before anything is read."""
    from ldm_ae.models import is_model_folder

    if is_model_folder(args.images):
        raise UserError(f"{args.images} is a model, and the images after it are missing; give MODEL MODEL ... IMAGES")
    if args.diffusion_images is not None and args.diffusion is None:
        raise UserError("--diffusion-images has no effect without --diffusion; remove it, or add --diffusion STEPS")
    if args.size == NATIVE:
        given = [name for name in ("resize", "diffusion") if getattr(args, name) is not None]
        given += ["crop"] * (args.crop != "center")
        if given:
            raise UserError(f"--size native and {option_of(given[0])} exclude each other; remove one of them")


def _contestants(models: list[str]) -> list[Contestant]:
    """Return the models by name; UserError for one that does not exist, before any is evaluated."""
    from ldm_ae.comparison import Contestant, display_names, split_name
    from ldm_ae.models import load_autoencoder
    from ldm_ae.models.loading.places import local_place

    named = [split_name(text) for text in models]
    names = display_names(named)
    places = [local_place(model) for _, model in named]
    return [
        Contestant(name=name, model=model, open=partial(load_autoencoder, place))
        for name, (_, model), place in zip(names, named, places, strict=True)
    ]


def _transform_options(args: argparse.Namespace) -> dict[str, Any]:
    return decoding_options(args) if args.size == NATIVE else square_options(args)


def _diffusion(args: argparse.Namespace) -> DiffusionPlan | None:
    if args.diffusion is None:
        return None
    from ldm_ae.comparison import DiffusionPlan
    from ldm_ae.data import open_source

    train = None if args.diffusion_images is None else open_source(args.diffusion_images)
    return DiffusionPlan(steps=args.diffusion, train=train, train_name=args.diffusion_images or "")
