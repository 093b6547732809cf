"""`ldm-ae convert`: latent stores to and from the files of other people's trainers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from ldm_ae.errors import UserError

Bar = Callable[[str, int | None], AbstractContextManager[Callable[[int, int], None]]]
"""Opens a progress bar with a text and, if it is known, a total."""


def add_convert_options(parser: argparse.ArgumentParser, images: str) -> None:
    """The command's arguments; `images` says what images may be."""
    parser.add_argument("source", metavar="STORE", help="the latent store; with --format store the files of "
                        "LightningDiT or EDM2 that are to become one")  # fmt: skip
    parser.add_argument("out", metavar="OUT", help="a new folder; a new .zip file for edm2-zip")
    parser.add_argument("--format", choices=(*_formats(), "store"), required=True, help="docs/LATENTS.md says what "
                        "each holds")  # fmt: skip
    parser.add_argument("--bucket", metavar="HxW", help="the images of this resolution only")
    parser.add_argument("--fold", metavar="K", help="write latents that have unit variance after the trainer "
                        "multiplies by its hard-coded K; trainer: by what is known to be in its code")  # fmt: skip
    parser.add_argument("--images", help=f"what was encoded, for repa and repa-e, which hold the images too: {images}")
    parser.add_argument("--arch", help="kohya: sd, sdxl, sd3 or flux; musubi: hv, qi, wan or zi")
    parser.add_argument("--name", help="repa-e: the autoencoder's name in the files' names (default: vae)")
    parser.add_argument("--model", help="with --format store: whose latents they are, unless ldm-ae wrote the files")


def _formats() -> list[str]:
    """The names of the latent formats, from their files, because importing them takes seconds."""
    folder = Path(__file__).parent / "latents" / "formats"
    return sorted(path.stem.replace("_", "-") for path in folder.glob("*.py") if path.stem not in ("__init__", "base"))


def convert(args: argparse.Namespace, bar: Bar) -> None:
    """Run the command."""
    if args.format == "store":
        _read_into_store(args, bar)
        return
    from ldm_ae.data import open_source
    from ldm_ae.latents.convert import convert_store

    if args.model is not None:
        raise UserError("--model is for --format store; a store says which model made it")
    try:
        fold = args.fold if args.fold in (None, "trainer") else float(args.fold)
    except ValueError:
        raise UserError(f"--fold is '{args.fold}'; give a number, or trainer") from None
    images = None if args.images is None else open_source(args.images)
    with bar("converting", None) as progress:
        summary = convert_store(
            args.source, args.out, args.format, bucket=args.bucket, fold=fold, arch=args.arch, name=args.name,
            images=images, progress=progress,
        )  # fmt: skip
    _note(summary.warnings)
    print(f"{summary.images} images for {args.format} in {summary.path}")


def _read_into_store(args: argparse.Namespace, bar: Bar) -> None:
    from ldm_ae.latents.incoming import import_latents
    from ldm_ae.models import load_autoencoder

    for name in ("bucket", "fold", "images", "arch", "name"):
        if getattr(args, name) is not None:
            raise UserError(f"--{name} says nothing to --format store; leave it out")
    model = None if args.model is None else load_autoencoder(args.model)
    with bar("reading", None) as progress:
        summary = import_latents(args.source, args.out, model=model, progress=progress)
    _note(summary.warnings)
    print(f"{summary.images} images of {summary.format} in the store {summary.path}")


def _note(warnings: list[str]) -> None:
    for warning in warnings:
        print(f"note: {warning}", file=sys.stderr)
