"""`ldm-ae import`."""

from __future__ import annotations

import argparse

from ldm_ae.commands._inputs import print_notes, print_path
from ldm_ae.commands._options import add_out, add_overwrite
from ldm_ae.commands.interface import Command
from ldm_ae.io.files import require_new_folder


class Import(Command):
    """Import of single files from other projects as diffusers folders."""

    name = "import"
    summary = "Convert a single file of an autoencoder, also a pickled one, to a diffusers folder."
    order = 100

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the file, the folder, and the values that the file may lack."""
        parser.add_argument("checkpoint", metavar="CKPT", help="a .ckpt, .pth or .safetensors file in a layout of "
                            "docs/IMPORT.md: of an autoencoder, or a whole latent diffusion model")  # fmt: skip
        add_out(parser)
        add_overwrite(parser)
        parser.add_argument("--config", metavar="CONFIG", help="CompVis's YAML of the model, for the image size and a "
                            "scale_factor; or a JSON file or a model folder, whose values take precedence over those "
                            "inferred from the weights")  # fmt: skip
        parser.add_argument("--family", choices=("sd", "sdxl", "sd3", "flux"), help="write the published "
                            "scaling_factor (and shift_factor) of these models, if the file does not contain "
                            "it")  # fmt: skip

    def run(self, args: argparse.Namespace) -> None:
        """Write the folder, and print the detected kind of the file."""
        from ldm_ae.interop import import_ldm
        from ldm_ae.interop.diffusers import DIFFUSERS_FILES

        require_new_folder(args.out, "the model", own_files=DIFFUSERS_FILES, overwrite=args.overwrite)
        found = import_ldm(
            args.checkpoint, args.out, config=args.config, family=args.family, overwrite=args.overwrite
        )  # fmt: skip
        print("\n".join(found.file.lines()))
        shift = "" if found.scale.shift is None else f", shift_factor {found.scale.shift:g}"
        print(f"scaling_factor {found.scale.factor:.6g}{shift}: {found.scale.source}")
        print_notes(list(found.notes))
        print(f"omitted {found.excluded} tensors of other networks")
        print_path("model", found.path)
