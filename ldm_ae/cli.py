"""The command line: options and exit statuses. What the commands do is in `commands.py`, imported when it is needed."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ldm_ae.core.deprecation import RenamedOption
from ldm_ae.core.errors import UserError, exit_status
from ldm_ae.core.registry import names_of
from ldm_ae.core.resources import DEFAULT_MODEL
from ldm_ae.io.locks import refuse_if_held
from ldm_ae.version import __version__

MODEL = (
    "a diffusers model folder, a run directory, a checkpoint in it, OWNER/NAME on the Hugging Face hub (a model, or a "
    f"pipeline with one), or the name of a model that comes with ldm_ae, such as vq-f8-small (default: {DEFAULT_MODEL})"
)
IMAGES = (
    "a folder of images or one image, WebDataset tars, Parquet files, a `datasets` source (a folder that it saved or "
    "hf:OWNER/NAME), where a folder can be several of these with folder:, tars:, parquet: or saved: before its path, "
    "or photos:train and photos:heldout, which come with the quickstart"
)
PERCEPTUAL = ("stlpips_vgg", "stlpips_alex", "lpips_vgg", "lpips_alex", "lpips_squeeze", "none")


class _Parser(argparse.ArgumentParser):
    """Errors of one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


class _Command(_Parser):
    """Options may stand between the arguments, although the first of these, MODEL, may be missing."""

    _parsing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._parsing:
            return super().parse_known_args(args, namespace)
        self._parsing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._parsing = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: 0 on success, 2 for a user's mistake, 1 where the machine
    failed, 128 + n after signal n."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    return exit_status(lambda: _run(arguments))


def _run(arguments: list[str]) -> None:
    if arguments[:1] == ["train"]:
        _train(arguments[1:])
        return
    parsed = build_parser().parse_args(arguments)
    if parsed.command == "encode" and os.environ.get("WORLD_SIZE", "1") == "1":
        refuse_if_held(parsed.store)  # before imports that take seconds
    from ldm_ae.commands import COMMANDS

    COMMANDS[parsed.command](parsed)


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    parser = _Parser(
        prog="ldm-ae",
        description="The first stage of latent diffusion: train, measure and use image autoencoders.",
        epilog="ldm-ae COMMAND --help tells more. Start with: ldm-ae quickstart",
    )
    parser.add_argument("--version", action="version", version=f"ldm_ae {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Command)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text[0].lower() + text[1:].rstrip("."), description=text)
        added.set_defaults(command=name)
        return added

    quickstart = command("quickstart", "Train, score and use a small autoencoder on real photos, offline.")
    quickstart.add_argument("--out", default="runs/quickstart", help="folder for all results (default: %(default)s)")
    quickstart.add_argument("--steps", type=int, help="training steps, instead of those of the recipe")

    # Its options are the configuration's; `main` hands them over unparsed.
    command("train", "Train an autoencoder from a configuration, such as configs/kl_f8.yaml.")

    evaluate = command("evaluate", "Score a model on images: metrics.json and a report.html with pictures.")
    _add(evaluate, "model", "images")
    evaluate.add_argument("--out", default="evaluation", help="folder for metrics.json and report.html (%(default)s)")
    evaluate.add_argument("--limit", type=int, help="use the first LIMIT images only")
    evaluate.add_argument("--perceptual", choices=PERCEPTUAL, default="stlpips_vgg", help="network of the perceptual "
                          "distance; lpips_* need weights from torchvision (default: %(default)s)")  # fmt: skip
    evaluate.add_argument("--features", choices=("auto", "inception", "efficientnet_lite0", "none"), default="auto",
                          help="network of the Fréchet distance; auto takes FID's Inception where its weights are at "
                          "hand, else EfficientNet-Lite0, under its own name")  # fmt: skip
    evaluate.add_argument("--prior", metavar="FOLDER", help="of a discrete model: the rate of its codes under this "
                          "prior too, which scripts/train_code_prior.py trained")  # fmt: skip
    _add_images_options(evaluate)
    _add_compute_options(evaluate)

    reconstruct = command("reconstruct", "Encode and decode images, to PNG files.")
    _add(reconstruct, "model", "images", "out")
    _add_images_options(reconstruct)
    _add_bucket_options(reconstruct)
    reconstruct.add_argument("--whole", action="store_true", help="keep each image whole, its shorter side resized to "
                             "the size, or with --resize none not at all; its sides are rounded to multiples of the "
                             "model's downsample factor")  # fmt: skip
    _add_compute_options(reconstruct)

    encode = command(
        "encode",
        "Encode images into a latent store (safetensors), with torchrun or accelerate "
        "in several processes; goes on where it was stopped.",
    )
    _add(encode, "model", "images", "store")
    _add_images_options(encode)
    _add_bucket_options(encode)
    _add_compute_options(encode)
    stored = encode.add_mutually_exclusive_group()
    stored.add_argument("--fp16", action="store_const", const="fp16", dest="dtype", help="store float16")
    stored.add_argument("--bf16", action="store_const", const="bf16", dest="dtype", help="store bfloat16")
    stored.add_argument("--dtype", choices=("fp32", "fp16", "bf16", "uint8"), help="what latents are stored in; uint8 "
                        "has 256 levels for each channel of an image, with its error said (default: fp32)")  # fmt: skip
    encode.set_defaults(dtype="fp32")
    encode.add_argument("--latents", choices=("sample", "mode"), default="sample", help="what `latents` holds; moments "
                        "are stored beside them (default: %(default)s)")  # fmt: skip
    encode.add_argument("--store", dest="content", choices=("full", "samples", "lean"), default="full",
                        help="samples leaves the moments or the indices of codes out; lean the latents, which readers "
                        "draw, or decode looks up (default: %(default)s)")  # fmt: skip
    encode.add_argument("--labels", metavar="FILE", help=".json or .csv: the class number of each image by its key or "
                        "file name (default: the images' folders, or what lies beside them)")  # fmt: skip
    encode.add_argument("--captions", metavar="FILE", help="the same for captions")
    encode.add_argument(
        "--classes",
        metavar="FILE",
        help="the names of the classes 0, 1, ...: the classes.json of a "
        "store, or a text with a name a line (default: those that STORE has, new ones after them)",
    )
    encode.add_argument("--no-flips", action="store_true", help="leave the mirrored images' latents out")
    encode.add_argument("--seed", type=int, default=0, help="of the posterior samples")
    encode.add_argument("--no-check", action="store_true", help="when it goes on or is there already: do not read the "
                        "images of finished files again to see whether they have changed")  # fmt: skip
    encode.add_argument("--compile", action="store_true", help="compile the encoder, which takes minutes for each size")
    encode.add_argument("--shard-size", type=int, default=1024, help="images of one file (default: %(default)s)")
    encode.add_argument("--engine", choices=("local", "ray"), default="local", help="what encodes: this process (and "
                        "those that torchrun or accelerate has started beside it), or a Ray cluster (default: "
                        "%(default)s)")  # fmt: skip
    encode.add_argument("--ray-actors", type=int, metavar="N", help="processes that encode: of one GPU each (default: "
                        "as many as there are), or with --device cpu or without a GPU of one core each")  # fmt: skip
    encode.add_argument("--ray-address", metavar="ADDRESS", help="of a cluster, such as auto or head:6379 "
                        "(default: RAY_ADDRESS, or else a Ray on this machine for this command alone)")  # fmt: skip

    decode = command("decode", "Decode a latent store to PNG files.")
    _add(decode, "model", "store", "out")
    decode.add_argument("--latents", choices=("stored", "mode"), default="stored", help="decode the stored latents, or "
                        "the moments' mean")  # fmt: skip
    decode.add_argument("--other-model", action="store_true", help="decode with a model that did not write the store")
    _add_compute_options(decode)

    export = command("export", "Write a model for other people's code: a diffusers folder or CompVis keys.")
    _add(export, "model", "out")
    export.add_argument("--format", choices=("diffusers", "ldm"), default="diffusers", help="(default: %(default)s)")
    export.add_argument("--images", help="measure scaling_factor on these, and whether the model is safe in fp16 on "
                        f"the first: {IMAGES}")  # fmt: skip
    export.add_argument("--scaling", choices=("auto", "keep", "measure"), default="auto", help="auto keeps the scale "
                        "of an encoder that has one and measures on --images where there is none, or where the "
                        "encoder was trained since (default: %(default)s)")  # fmt: skip
    export.add_argument("--per-channel", action=argparse.BooleanOptionalAction, help="measure latents_mean and "
                        "latents_std, for SDXL's pipelines and trainers that read them; those of Stable Diffusion, "
                        "Kolors, DiT, SD3 and FLUX ignore them and decode wrongly (default: where the model has "
                        "them)")  # fmt: skip
    export.add_argument("--weights", choices=("fp32", "bf16", "fp16"), default="fp32", help="what the weights are "
                        "written in (default: %(default)s)")  # fmt: skip
    export.add_argument("--sample-size", type=int, metavar="SIZE", help="side in pixels that the configuration names "
                        "and that commands take by default (default: that of the training crops)")  # fmt: skip
    _add_images_options(export)
    _add_compute_options(export)

    inspect = command("inspect", "Say what a model, checkpoint, run, store or prior is, and whether it is sound.")
    inspect.add_argument(
        "path", metavar="PATH", help="a model folder, run directory, checkpoint, latent store, or prior over codes"
    )
    inspect.add_argument("--json", action="store_true", help="print JSON")

    to_convert = command("convert", "Write a latent store in a trainer's format, or read one into a store.")
    _add_convert_options(to_convert)

    to_import = command("import", "Read a single file of a KL or VQ autoencoder into a diffusers folder.")
    to_import.add_argument("checkpoint", metavar="CKPT", help="a .ckpt, .pth or .safetensors with keys of CompVis's "
                           "latent-diffusion, taming or diffusers, or of a latent diffusion model that has an "
                           "autoencoder")  # fmt: skip
    _add(to_import, "out")
    to_import.add_argument("--config", metavar="YAML", help="CompVis's configuration of it, for the image size and a "
                           "scale_factor; the network itself is inferred from its weights")  # fmt: skip
    to_import.add_argument("--family", choices=("sd", "sdxl", "sd3", "flux"), help="write the scaling_factor (and "
                           "shift_factor) that is published for these models, where the file does not say "
                           "it")  # fmt: skip
    return parser


def _add(parser: argparse.ArgumentParser, *names: str) -> None:
    texts = {"model": MODEL, "images": IMAGES, "out": "a new folder for the results", "store": "the latent store"}
    for name in names:
        if name == "model":
            parser.add_argument(name, metavar="MODEL", nargs="?", default=DEFAULT_MODEL, help=texts[name])
        else:
            parser.add_argument(name, metavar=name.upper(), help=texts[name])


def _add_images_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, help="side of the central square crop in pixels (default: the size the "
                        "model was trained at)")  # fmt: skip
    parser.add_argument("--resize", help="shorter side before the crop, or none for no resizing (default: the size)")
    parser.add_argument("--crop", choices=("center", "adm"), default="center", help="adm resizes as center_crop_arr of "
                        "ADM does, by which scores on ImageNet are published (default: %(default)s)")  # fmt: skip
    parser.add_argument("--colour-profiles", choices=("convert", "ignore"), help="convert colours to sRGB by the "
                        "images' colour profiles, or ignore these, as published data sets did (default: convert, or "
                        "what the store to be resumed was begun with)")  # fmt: skip
    parser.add_argument("--max-pixels", type=int, metavar="N", help="skip larger images; decoding takes about 10 bytes "
                        "a pixel (default: 89 million)")  # fmt: skip
    parser.add_argument("--workers", type=int, default=2, help="decoding processes (default: %(default)s)")
    parser.add_argument("--max-bad-fraction", type=float, default=0.01, help="fraction of unreadable images past which "
                        "the command fails (default: %(default)s)")  # fmt: skip
    parser.add_argument("--bad-share", type=float, action=RenamedOption, new="--max-bad-fraction")


def _add_bucket_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", metavar="HxW,...", help="several sizes in place of --size, such as "
                        "256x256,192x320,320x192: each image is resized and cropped to the one that is nearest to its "
                        "aspect ratio")  # fmt: skip
    parser.add_argument("--area", metavar="HxW", help="the same with all sizes of about this area; docs/LATENTS.md "
                        "lists them")  # fmt: skip
    parser.add_argument("--multiple", type=int, help="with --area: what divides every side (default: 64)")
    parser.add_argument("--max-ratio", type=float, help="with --area: of the longer to the shorter side (default: 4)")


def _add_compute_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="such as cpu or cuda (default: %(default)s)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="fp32", help="what the model "
                        "runs in; auto is bf16 on a device that is fast in it and fp32 on others (default: %(default)s)"
                        )  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=8, help="images at a time (default: %(default)s)")


def _add_convert_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="STORE", help="the latent store; with --format store the files of "
                        "LightningDiT or EDM2 that are to become one")  # fmt: skip
    parser.add_argument("out", metavar="OUT", help="a new folder; a new .zip file for edm2-zip")
    formats = names_of("ldm_ae.latents.formats", "FORMATS")
    parser.add_argument("--format", choices=(*formats, "store"), required=True, help="docs/LATENTS.md says what each "
                        "holds")  # fmt: skip
    parser.add_argument("--bucket", metavar="HxW", help="the images of this resolution only")
    parser.add_argument("--fold", metavar="K", help="write latents that have unit variance after the trainer "
                        "multiplies by its hard-coded K; trainer: by what is known to be in its code")  # fmt: skip
    parser.add_argument("--images", help=f"what was encoded, for repa and repa-e, which hold the images too: {IMAGES}")
    parser.add_argument("--arch", help="kohya: sd, sdxl, sd3 or flux; musubi: hv, qi, wan or zi")
    parser.add_argument("--name", help="repa-e: the autoencoder's name in the files' names (default: vae)")
    parser.add_argument("--files", choices=("safetensors", "npy"), help="tokens: the kind of file (default: "
                        "safetensors)")  # fmt: skip
    parser.add_argument("--no-flips", action="store_true", default=None, help="tokens: leave the mirror images out")
    parser.add_argument("--model", help="with --format store: whose latents they are, unless ldm-ae wrote the files")


def _train(arguments: list[str]) -> None:
    if not arguments:
        raise UserError("train needs a configuration: ldm-ae train --config configs/kl_f8.yaml --data.train IMAGES")
    if (folder := _run_folder(arguments)) is not None and os.environ.get("WORLD_SIZE", "1") == "1":
        refuse_if_held(folder)  # before imports that take seconds
    from ldm_ae.commands import run_train

    run_train(arguments)


def _run_folder(arguments: Sequence[str]) -> str | None:
    """What `--out`, or the last `--config` that has an `out`, names; nothing is checked yet."""
    given = {"--out": "", "--config": ""}
    for argument, value in zip(arguments, [*arguments[1:], ""], strict=False):
        name, equals, after = argument.partition("=")
        if name in given:
            given[name] = after if equals else value
    if given["--out"] or not Path(given["--config"]).is_file():
        return given["--out"] or None
    text = Path(given["--config"]).read_text(encoding="utf-8", errors="replace")
    found = re.search(r"^out:\s*['\"]?([^'\"#\n]+)", text, re.MULTILINE)
    return found[1].strip() if found else None


if __name__ == "__main__":
    sys.exit(main())
