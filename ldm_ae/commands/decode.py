"""`ldm-ae decode`."""

from __future__ import annotations

import argparse

from ldm_ae.commands._inputs import check_limit, choose_precision, print_path, tiled
from ldm_ae.commands._options import add_compute_options, add_limit, add_model, add_out, add_store, add_tiling_options
from ldm_ae.commands.interface import Command
from ldm_ae.core.terminal import progress_bar
from ldm_ae.io.files import require_new_folder


class Decode(Command):
    """Decoding of a latent store into image files."""

    name = "decode"
    summary = "Decode a latent store to image files."
    order = 60

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the model, the store and the folder."""
        add_model(parser, of_store=True)
        add_store(parser)
        add_out(parser)
        parser.add_argument("--latents", choices=("stored", "mode"), default="stored", help="decode the stored "
                            "latents, or the mean of the stored moments")  # fmt: skip
        parser.add_argument("--other-model", action="store_true", help="decode with a model that did not write the "
                            "store")  # fmt: skip
        parser.add_argument("--files", choices=("png", "tif", "npy"), help="kind of files; default: PNG where it can "
                            "hold the model's images, else NumPy arrays")  # fmt: skip
        parser.add_argument("--images", help="with --files tif: the encoded images, of which GeoTIFF files give their "
                            "georeference to the decoded ones")  # fmt: skip
        add_limit(parser)
        add_compute_options(parser)
        add_tiling_options(parser)

    def run(self, args: argparse.Namespace) -> None:
        """Write a file for each image of the store."""
        require_new_folder(args.out, "the images")
        check_limit(args.limit)
        from ldm_ae.core.allocator import keep_freed_memory
        from ldm_ae.core.devices import pick_device
        from ldm_ae.data import open_source
        from ldm_ae.latents import Georeferences, LatentStore, decode_store
        from ldm_ae.models import load_autoencoder
        from ldm_ae.models.loading.places import local_place, maker_place

        keep_freed_memory(pick_device(args.device))
        choose_precision(args)
        # Wrong names are refused before the import of diffusers, which takes seconds.
        named = None if args.model is None else local_place(args.model)
        store = LatentStore(args.store)
        place = maker_place(f"{args.store} was made by", store.request.model_hash) if named is None else named
        georeferences = None if args.images is None else Georeferences(open_source(args.images))
        model = tiled(load_autoencoder(place, config=args.config), args)
        with progress_bar("decoding", None) as progress:
            count = decode_store(
                model, args.store, args.out, latents=args.latents, batch_size=args.batch_size, device=args.device,
                precision=args.precision, limit=args.limit, allow_other_model=args.other_model, files=args.files,
                georeferences=georeferences, progress=progress,
            )  # fmt: skip
        for line in [] if georeferences is None else georeferences.lines():
            print(line)
        print_path(f"{count} images", args.out)
