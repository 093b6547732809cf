"""`ldm-ae reconstruct`."""

from __future__ import annotations

import argparse

from ldm_ae.commands._inputs import bucketed_inputs, choose_precision, first_images, print_path, whole_inputs
from ldm_ae.commands._options import (
    add_bucket_options,
    add_compute_options,
    add_images,
    add_images_options,
    add_limit,
    add_model,
    add_out,
    add_tiling_options,
)
from ldm_ae.commands.interface import Command
from ldm_ae.core.terminal import progress_bar
from ldm_ae.io.files import require_new_folder


class Reconstruct(Command):
    """Reconstruction of images as files."""

    name = "reconstruct"
    summary = "Encode and decode images, and write image files."
    order = 40

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the model, the images and the sizes."""
        add_model(parser)
        add_images(parser)
        add_out(parser)
        add_images_options(parser, native=True)
        add_bucket_options(parser)
        add_limit(parser)
        parser.add_argument("--whole", action="store_true", help="keep each image whole: resize its shorter side to "
                            "the size, or with --resize none keep its size; its sides are rounded to multiples of the "
                            "model's downsample factor")  # fmt: skip
        parser.add_argument("--files", choices=("png", "tif", "npy"), help="kind of files; default: PNG where it can "
                            "hold the model's images, else NumPy arrays")  # fmt: skip
        add_compute_options(parser)
        add_tiling_options(parser)

    def run(self, args: argparse.Namespace) -> None:
        """Write a file for each image."""
        require_new_folder(args.out, "the images")
        from ldm_ae.data import WholeTransform
        from ldm_ae.latents import reconstruct_images

        choose_precision(args)
        model, source, transform = whole_inputs(args) if args.whole else bucketed_inputs(args)
        source = first_images(source, args.limit)
        with progress_bar("reconstructing", len(source)) as progress:
            written = reconstruct_images(
                model, source, args.out, transform=transform, batch_size=args.batch_size, workers=args.workers,
                device=args.device, precision=args.precision, max_bad_fraction=args.max_bad_fraction, files=args.files,
                progress=progress,
            )  # fmt: skip
        print("\n".join(source.account().lines()))
        if not isinstance(transform, WholeTransform):
            sizes = ", ".join(f"{height}x{width}" for height, width in transform.sizes)
            print(f"at {sizes} pixels: {written.crops.line()}; --whole keeps whole images")
        for note in written.notes:
            print(note)
        print_path(f"{written.images} reconstructions", args.out)
