"""`ldm-ae convert`."""

from __future__ import annotations

import argparse

from ldm_ae.commands._inputs import option_of, print_notes, print_path
from ldm_ae.commands._options import IMAGES
from ldm_ae.commands.interface import Command
from ldm_ae.core.errors import UserError
from ldm_ae.core.registry import names_of
from ldm_ae.core.terminal import progress_bar


class Convert(Command):
    """Conversion between latent stores and other trainers' files."""

    name = "convert"
    summary = "Write a latent store in a trainer's format, or read one into a store."
    order = 90

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the store, the format, and the options that some formats need."""
        parser.add_argument("source", metavar="STORE", help="the latent store; with --format store the files of "
                            "LightningDiT or EDM2 that are to become one")  # fmt: skip
        parser.add_argument("out", metavar="OUT", help="a new folder; a new .zip file for edm2-zip")
        formats = names_of("ldm_ae.latents.formats", "FORMATS")
        parser.add_argument("--format", choices=(*formats, "store"), required=True, help="docs/LATENTS.md says what "
                            "each holds")  # fmt: skip
        parser.add_argument("--bucket", metavar="HxW", help="the images of this resolution only")
        parser.add_argument("--fold", metavar="K", help="write latents that have unit variance after the trainer "
                            "multiplies by its hard-coded K; trainer: by what is known to be in its code")  # fmt: skip
        parser.add_argument("--images", help="what was encoded, for repa and repa-e, which hold the images too: "
                            f"{IMAGES}")  # fmt: skip
        parser.add_argument("--arch", help="kohya: sd, sdxl, sd3 or flux; musubi: hv, qi, wan or zi")
        parser.add_argument("--name", help="repa-e: the autoencoder's name in the files' names (default: vae)")
        parser.add_argument("--files", choices=("safetensors", "npy"), help="tokens: the kind of file (default: "
                            "safetensors)")  # fmt: skip
        parser.add_argument("--no-flips", action="store_true", default=None, help="tokens: leave the mirror images "
                            "out")  # fmt: skip
        parser.add_argument("--model", help="with --format store: whose latents they are, unless ldm-ae wrote the "
                            "files")  # fmt: skip

    def run(self, args: argparse.Namespace) -> None:
        """Write the files."""
        if args.format == "store":
            _read_into_store(args)
        else:
            _write_format(args)


def _write_format(args: argparse.Namespace) -> None:
    from ldm_ae.data import open_source
    from ldm_ae.latents.conversion.convert import convert_store

    if args.model is not None:
        raise UserError("--model is for --format store; a store says which model made it")
    try:
        fold = args.fold if args.fold in (None, "trainer") else float(args.fold)
    except ValueError:
        raise UserError(f"--fold is '{args.fold}'; give a number, or trainer") from None
    images = None if args.images is None else open_source(args.images)
    with progress_bar("converting", None) as progress:
        summary = convert_store(
            args.source, args.out, args.format, bucket=args.bucket, fold=fold, arch=args.arch, name=args.name,
            images=images, files=args.files, no_flips=args.no_flips, progress=progress,
        )  # fmt: skip
    print_notes(summary.warnings)
    print_path(f"{summary.images} images for {args.format}", summary.path)


def _read_into_store(args: argparse.Namespace) -> None:
    from ldm_ae.latents.conversion.import_store import import_latents
    from ldm_ae.models import load_autoencoder

    for name in ("bucket", "fold", "images", "arch", "name", "files", "no_flips"):
        if getattr(args, name) is not None:
            raise UserError(f"{option_of(name)} says nothing to --format store; leave it out")
    model = None if args.model is None else load_autoencoder(args.model)
    with progress_bar("reading", None) as progress:
        summary = import_latents(args.source, args.out, model=model, progress=progress)
    print_notes(summary.warnings)
    print_path(f"store of {summary.images} images of {summary.format}", summary.path)
