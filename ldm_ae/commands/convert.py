"""`ldm-ae convert`."""

from __future__ import annotations

import argparse

from ldm_ae.commands._inputs import option_of, print_notes, print_path
from ldm_ae.commands._options import IMAGES, add_config
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
        parser.add_argument("source", metavar="STORE", help="latent store; with --format store the files of "
                            "LightningDiT or EDM2 to read")  # fmt: skip
        parser.add_argument("out", metavar="OUT", help="new folder; for edm2-zip a new .zip file")
        formats = names_of("ldm_ae.latents.formats", "FORMATS")
        parser.add_argument("--format", choices=(*formats, "store"), required=True, help="format to write, "
                            "which docs/LATENTS.md describes, or store")  # fmt: skip
        parser.add_argument("--bucket", metavar="HxW", help="convert only the images of this resolution")
        parser.add_argument("--fold", metavar="K", help="write latents that have unit variance after the trainer "
                            "multiplies by its hard-coded K; trainer takes the K of the trainer's code")  # fmt: skip
        parser.add_argument("--images", help="the encoded images, for repa and repa-e, which hold the images "
                            f"too: {IMAGES}")  # fmt: skip
        parser.add_argument(
            "--arch", help="architecture: sd, sdxl, sd3 or flux for kohya; hv, qi, wan or zi for musubi"
        )
        parser.add_argument("--name", help="repa-e: name of the autoencoder in the file names (default: vae)")
        parser.add_argument("--files", choices=("safetensors", "npy"), help="tokens: type of the files (default: "
                            "safetensors)")  # fmt: skip
        parser.add_argument("--no-flips", action="store_true", default=None, help="tokens: omit the mirrored images")
        parser.add_argument("--model", help="with --format store: model of the latents, needed unless ldm-ae wrote "
                            "the files")  # fmt: skip
        add_config(parser)

    def run(self, args: argparse.Namespace) -> None:
        """Write the files."""
        if args.format == "store":
            _read_into_store(args)
        else:
            _write_format(args)


def _write_format(args: argparse.Namespace) -> None:
    from ldm_ae.data import open_source
    from ldm_ae.latents.conversion.convert import convert_store

    for name in ("model", "config"):
        if getattr(args, name) is not None:
            raise UserError(f"--{name} has no effect without --format store, because a store records its model; remove "
                            "it")  # fmt: skip
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
            raise UserError(f"{option_of(name)} has no effect with --format store; remove it")
    if args.model is None and args.config is not None:
        raise UserError("--config has no effect without --model; remove it")
    model = None if args.model is None else load_autoencoder(args.model, config=args.config)
    with progress_bar("reading", None) as progress:
        summary = import_latents(args.source, args.out, model=model, progress=progress)
    print_notes(summary.warnings)
    print_path(f"store of {summary.images} images of {summary.format}", summary.path)
