"""The command line. Each command is thin over a function of the package; heavy imports are inside them."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ldm_ae.errors import UserError
from ldm_ae.version import __version__

if TYPE_CHECKING:
    from ldm_ae.data import ImageTransform, Source
    from ldm_ae.models import Autoencoder

MODEL = "a diffusers model folder, a run directory, a checkpoint in it, or OWNER/NAME on the Hugging Face hub"
IMAGES = (
    "a folder of images or one image, WebDataset tars, a `datasets` source (a folder of it or hf:OWNER/NAME), "
    "or photos:train and photos:heldout, which come with the quickstart"
)
PERCEPTUAL = ("stlpips_vgg", "stlpips_alex", "lpips_vgg", "lpips_alex", "lpips_squeeze", "none")


class _Parser(argparse.ArgumentParser):
    """Errors of one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: 0 on success, 2 for a user's mistake, 1 where the machine
    failed, 128 + n after signal n."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        if arguments[:1] == ["train"]:
            return _train(arguments[1:])
        parsed = build_parser().parse_args(arguments)
        parsed.run(parsed)
    except UserError as error:
        print(f"ldm-ae: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a full disk, a file that went away: the machine's fault, and no defect of ours
        print(f"ldm-ae: error: {error.strerror or error}: {error.filename or ''}".rstrip(": "), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ldm-ae: interrupted", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    parser = _Parser(
        prog="ldm-ae",
        description="The first stage of latent diffusion: train, measure and use image autoencoders.",
        epilog="ldm-ae COMMAND --help tells more. Start with: ldm-ae quickstart",
    )
    parser.add_argument("--version", action="version", version=f"ldm_ae {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text[0].lower() + text[1:].rstrip("."), description=text)
        added.set_defaults(run=run)
        return added

    quickstart = command("quickstart", _quickstart, "Train, score and use a small autoencoder on real photos, offline.")
    quickstart.add_argument("--out", default="runs/quickstart", help="folder for all results (default: %(default)s)")
    quickstart.add_argument("--steps", type=int, help="training steps, instead of those of the recipe")

    # Its options are the configuration's; `main` hands them over unparsed.
    command("train", lambda _: None, "Train an autoencoder from a configuration, such as configs/kl_f8.yaml.")

    evaluate = command("evaluate", _evaluate, "Score a model on images: metrics.json and a report.html with pictures.")
    _add(evaluate, "model", "images")
    evaluate.add_argument("--out", default="evaluation", help="folder for metrics.json and report.html (%(default)s)")
    evaluate.add_argument("--limit", type=int, help="use the first LIMIT images only")
    evaluate.add_argument("--perceptual", choices=PERCEPTUAL, default="stlpips_vgg", help="network of the perceptual "
                          "distance; lpips_* need weights from torchvision (default: %(default)s)")  # fmt: skip
    evaluate.add_argument("--features", choices=("auto", "inception", "efficientnet_lite0", "none"), default="auto",
                          help="network of the Fréchet distance; auto takes FID's Inception where its weights are at "
                          "hand, else EfficientNet-Lite0, under its own name")  # fmt: skip
    _add_images_options(evaluate)
    _add_compute_options(evaluate)

    reconstruct = command("reconstruct", _reconstruct, "Encode and decode images, to PNG files.")
    _add(reconstruct, "model", "images", "out")
    _add_images_options(reconstruct)
    _add_compute_options(reconstruct)

    encode = command("encode", _encode, "Encode images into a latent store (safetensors).")
    _add(encode, "model", "images", "store")
    _add_images_options(encode)
    _add_compute_options(encode)
    stored = encode.add_mutually_exclusive_group()
    stored.add_argument("--fp16", action="store_const", const="fp16", dest="dtype", help="store float16")
    stored.add_argument("--bf16", action="store_const", const="bf16", dest="dtype", help="store bfloat16")
    encode.set_defaults(dtype="fp32")
    encode.add_argument("--latents", choices=("sample", "mode"), default="sample", help="what `latents` holds; moments "
                        "are stored beside them (default: %(default)s)")  # fmt: skip
    encode.add_argument("--no-flips", action="store_true", help="leave the mirrored images' latents out")
    encode.add_argument("--seed", type=int, default=0, help="of the posterior samples")
    encode.add_argument("--shard-size", type=int, default=1024, help="images of one file (default: %(default)s)")

    decode = command("decode", _decode, "Decode a latent store to PNG files.")
    _add(decode, "model", "store", "out")
    decode.add_argument("--latents", choices=("stored", "mode"), default="stored", help="decode the stored latents, or "
                        "the moments' mean")  # fmt: skip
    decode.add_argument("--other-model", action="store_true", help="decode with a model that did not write the store")
    _add_compute_options(decode)

    export = command("export", _export, "Write a model for other people's code: a diffusers folder or CompVis keys.")
    _add(export, "model", "out")
    export.add_argument("--format", choices=("diffusers", "ldm"), default="diffusers", help="(default: %(default)s)")
    export.add_argument("--images", help=f"measure scaling_factor on these: {IMAGES}")
    export.add_argument("--per-channel", action="store_true", help="write latents_mean and latents_std too; the "
                        "pipelines of Stable Diffusion and DiT ignore them")  # fmt: skip
    _add_images_options(export)
    _add_compute_options(export)

    inspect = command("inspect", _inspect, "Say what a model, checkpoint, run or store is, and whether it is sound.")
    inspect.add_argument("path", metavar="PATH", help="a model folder, run directory, checkpoint or latent store")
    inspect.add_argument("--json", action="store_true", help="print JSON")

    for name, text in (("import", "Read a CompVis checkpoint"), ("convert", "Write a store in a trainer's format")):
        later = command(name, _not_yet, f"{text}: not in this version, comes with a later one.")
        later.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
        later.set_defaults(name=name)
    return parser


def _add(parser: argparse.ArgumentParser, *names: str) -> None:
    texts = {"model": MODEL, "images": IMAGES, "out": "a new folder for the results", "store": "the latent store"}
    for name in names:
        parser.add_argument(name, metavar=name.upper(), help=texts[name])


def _add_images_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, help="side of the central square crop in pixels (default: the size the "
                        "model was trained at)")  # fmt: skip
    parser.add_argument("--resize", help="shorter side before the crop, or none for no resizing (default: the size)")
    parser.add_argument("--workers", type=int, default=2, help="decoding processes (default: %(default)s)")
    parser.add_argument("--bad-share", type=float, default=0.01, help="share of unreadable images past which the "
                        "command fails (default: %(default)s)")  # fmt: skip


def _add_compute_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="such as cpu or cuda (default: %(default)s)")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="what the model runs in "
                        "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=8, help="images at a time (default: %(default)s)")


# ------------------------------------------------------------------------------------------------------- the commands


def _train(arguments: list[str]) -> int:
    from ldm_ae.config import config_parser, train
    from ldm_ae.training import Stopped

    parser = config_parser(prog="ldm-ae train")
    if not arguments:
        raise UserError("train needs a configuration: ldm-ae train --config configs/kl_f8.yaml --data.train IMAGES")
    try:
        train(arguments, parser)
    except Stopped as stopped:
        return stopped.status
    return 0


def _quickstart(args: argparse.Namespace) -> None:
    from ldm_ae.quickstart import quickstart

    quickstart(Path(args.out), steps=args.steps)


def _evaluate(args: argparse.Namespace) -> None:
    from ldm_ae.data import EvaluationLoader
    from ldm_ae.evaluation import evaluate, write_report
    from ldm_ae.evaluation.summary import summary_lines
    from ldm_ae.files import make_folder

    folder = make_folder(args.out)
    model, source, transform = _inputs(args)
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit is {args.limit}; it must be at least 1")
    count = min(args.limit or len(source), len(source))
    loader = EvaluationLoader(
        source, transform, batch_size=args.batch_size, workers=args.workers, bad_share=args.bad_share,
        indices=range(count),
    )  # fmt: skip
    with _bar("evaluating", count) as progress:
        evaluation = evaluate(
            model, loader, source=args.images, transform_description=transform.describe(), model_name=str(args.model),
            perceptual=perceptual_network(args.perceptual), features=_feature_network(args.features),
            precision=args.precision, device=args.device, progress=lambda done: progress(done, count),
        )  # fmt: skip
    write_report(evaluation, folder)
    print("\n".join(summary_lines(evaluation)))
    print(f"pictures and tables: {folder / 'report.html'}")


def _reconstruct(args: argparse.Namespace) -> None:
    from ldm_ae.latents import reconstruct_images

    model, source, transform = _inputs(args)
    with _bar("reconstructing", len(source)) as progress:
        count = reconstruct_images(
            model, source, args.out, transform=transform, batch_size=args.batch_size, workers=args.workers,
            device=args.device, precision=args.precision, bad_share=args.bad_share, progress=progress,
        )  # fmt: skip
    print(f"{count} reconstructions in {args.out}")


def _encode(args: argparse.Namespace) -> None:
    from ldm_ae.latents import encode_images

    model, source, transform = _inputs(args)
    with _bar("encoding", len(source)) as progress:
        summary = encode_images(
            model, source, args.store, transform=transform, source_name=args.images, batch_size=args.batch_size,
            workers=args.workers, device=args.device, precision=args.precision, dtype=args.dtype, latents=args.latents,
            flips=not args.no_flips, seed=args.seed, shard_size=args.shard_size, bad_share=args.bad_share,
            progress=progress,
        )  # fmt: skip
    done = "was complete already" if summary.already_complete else "written"
    print(f"{args.store} {done}: {summary.images} images, {len(summary.bad)} unusable, "
          f"scaling_factor {1 / summary.statistics.pooled_std:.5f}")  # fmt: skip


def _decode(args: argparse.Namespace) -> None:
    from ldm_ae.latents import decode_store
    from ldm_ae.models import load_autoencoder

    model = load_autoencoder(args.model)
    with _bar("decoding", None) as progress:
        count = decode_store(
            model, args.store, args.out, latents=args.latents, batch_size=args.batch_size, device=args.device,
            precision=args.precision, allow_other_model=args.other_model, progress=progress,
        )  # fmt: skip
    print(f"{count} images in {args.out}")


def _export(args: argparse.Namespace) -> None:
    from ldm_ae.interop import export_diffusers, export_ldm
    from ldm_ae.models import load_autoencoder

    if args.format == "ldm":
        if args.images or args.per_channel:
            raise UserError("--format ldm has no place for a scale; leave --images and --per-channel out")
        print(f"CompVis keys in {export_ldm(load_autoencoder(args.model), args.out)}")
        return
    if args.per_channel and not args.images:
        raise UserError("--per-channel needs --images to measure on")
    model, statistics = load_autoencoder(args.model), None
    if args.images:
        statistics = _measure(args)
        print(f"scaling_factor {1 / statistics.pooled_std:.5f}, measured on {args.images}")
    elif model.latent_spec.scaling_factor == 1.0:
        print("note: scaling_factor is 1, nobody has measured it; --images IMAGES measures it", file=sys.stderr)
    print(f"{type(model.net).__name__}.from_pretrained opens "
          f"{export_diffusers(model, args.out, scaling=statistics, per_channel=args.per_channel)}")  # fmt: skip


def _inspect(args: argparse.Namespace) -> None:
    from ldm_ae.inspection import inspect_path

    found = inspect_path(args.path)
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(_lines(found)))
    if found["problems"]:
        raise UserError(f"{args.path} is not sound: {found['problems'][0]}")


def _not_yet(args: argparse.Namespace) -> None:
    raise UserError(f"'{args.name}' is not in this version; it comes with a later one")


# ------------------------------------------------------------------------------------------------------ what they share


def _inputs(args: argparse.Namespace) -> tuple[Autoencoder, Source, ImageTransform]:
    """Model, images and their transform, each checked before anything is computed."""
    from ldm_ae.data import ImageTransform, open_source
    from ldm_ae.models import load_autoencoder

    if args.batch_size < 1 or args.workers < 0:
        raise UserError("--batch-size must be at least 1 and --workers at least 0")
    model = load_autoencoder(args.model)
    size = args.size if args.size is not None else model.sample_size
    model.latent_spec.latent_size(size, size)
    resize = args.resize
    if resize is not None and resize != "none":
        if not resize.isdigit():
            raise UserError(f"--resize is '{resize}'; give a number of pixels, or none")
        resize = int(resize)
    return model, open_source(args.images), ImageTransform(size=size, resize=resize)


def _measure(args: argparse.Namespace) -> Any:
    from ldm_ae.data import EvaluationLoader
    from ldm_ae.interop import measure_scaling
    from ldm_ae.models import for_inference

    model, source, transform = _inputs(args)
    loader = EvaluationLoader(
        source, transform, batch_size=args.batch_size, workers=args.workers, bad_share=args.bad_share
    )
    runner = for_inference(model, device=args.device, precision=args.precision)
    with _bar("measuring", len(source)) as progress:
        return measure_scaling(runner, loader, progress=lambda done: progress(done, len(source)))


def perceptual_network(name: str) -> Any:
    """The network of a perceptual distance by its score's name, None for `none`."""
    from ldm_ae.losses import LPIPS, ShiftTolerantLPIPS

    if name == "none":
        return None
    family, _, net = name.partition("_")
    return ShiftTolerantLPIPS(net=net) if family == "stlpips" else LPIPS(net=net)  # type: ignore[arg-type]


def _feature_network(name: str) -> Any:
    from ldm_ae.evaluation import EfficientNetLite0Features, InceptionFeatures

    if name == "none":
        return None
    if name == "inception" or (name == "auto" and InceptionFeatures.at_hand()):
        return InceptionFeatures()
    return EfficientNetLite0Features()


@contextmanager
def _bar(text: str, total: int | None) -> Iterator[Callable[[int, int], None]]:
    """A progress bar with an estimate of the time left, on a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [TextColumn(text), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left")]
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(text, total=total)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(value: dict[str, Any], indent: str = "") -> Iterator[str]:
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield f"{indent}{key}:"
            yield from _lines(item, indent + "  ")
        elif isinstance(item, list) and key == "problems":
            yield f"{indent}sound: {'no' if item else 'yes'}"
            yield from (f"{indent}  {problem}" for problem in item)
        else:
            yield f"{indent}{key}: {item}"


if __name__ == "__main__":
    sys.exit(main())
