"""`ldm-ae encode`."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from ldm_ae.commands._inputs import bucketed_inputs, first_images, option_of, print_notes, print_path
from ldm_ae.commands._options import (
    add_bucket_options,
    add_compute_options,
    add_images,
    add_images_options,
    add_limit,
    add_model,
    add_store,
    add_tiling_options,
)
from ldm_ae.commands.interface import Command
from ldm_ae.core.errors import UserError
from ldm_ae.core.terminal import progress_bar
from ldm_ae.io.locks import refuse_if_held

if TYPE_CHECKING:
    from ldm_ae.latents import EncodeSummary
    from ldm_ae.latents.encoding.config import EncodeConfig
    from ldm_ae.latents.encoding.jobs import Engine


class Encode(Command):
    """Encoding of a data set into a latent store. An option whose `dest` is an `EncodeConfig` field sets that field."""

    name = "encode"
    summary = (
        "Encode images into a latent store (safetensors), with torchrun or accelerate in several processes; rerun "
        "the same command to resume."
    )
    order = 50

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the model, the images, the sizes, the stored content and the encoding processes."""
        add_model(parser)
        add_images(parser)
        add_store(parser)
        add_images_options(parser, native=True)
        add_bucket_options(parser)
        add_limit(parser)
        add_compute_options(parser)
        add_tiling_options(parser)
        stored = parser.add_mutually_exclusive_group()
        stored.add_argument("--fp16", action="store_const", const="fp16", dest="dtype", help="store float16")
        stored.add_argument("--bf16", action="store_const", const="bf16", dest="dtype", help="store bfloat16")
        stored.add_argument("--dtype", choices=("fp32", "fp16", "bf16", "uint8"), help="type of the stored "
                            "latents; uint8 has 256 levels for each channel of an image, and its error is printed "
                            "(default: fp32)")  # fmt: skip
        parser.set_defaults(dtype="fp32")
        parser.add_argument("--latents", choices=("sample", "mode"), default="sample", help="content of "
                            "`latents`: a sample or the mode of the posterior; moments are stored too (default: "
                            "%(default)s)")  # fmt: skip
        parser.add_argument("--store", dest="content", choices=("full", "samples", "lean"), default="full",
                            help="samples omits the moments or the indices of codes; lean omits the latents, which "
                            "readers draw from the moments or look up by the indices (default: "
                            "%(default)s)")  # fmt: skip
        parser.add_argument("--labels", metavar="FILE", help=".json or .csv file with the class number of each image "
                            "by its key or file name (default: the images' folders, or annotation files beside "
                            "them)")  # fmt: skip
        parser.add_argument("--captions", metavar="FILE", help="like --labels, for captions")
        parser.add_argument("--classes", metavar="FILE", help="names of the classes 0, 1, ...: the classes.json of a "
                            "store, or a text file with one name per line (default: those of STORE, then new "
                            "ones)")  # fmt: skip
        parser.add_argument("--flips", action=argparse.BooleanOptionalAction, help="store or omit the latents of the "
                            "mirrored images (default: as in STORE; in a new one they are stored, except for digits "
                            "and sprites, whose labels do not hold for them)")  # fmt: skip
        parser.add_argument("--seed", type=int, default=0, help="seed of the posterior samples (default: %(default)s)")
        parser.add_argument("--no-check", dest="check", action="store_false", help="for an existing store: do not "
                            "check whether the images of finished files have changed")  # fmt: skip
        parser.add_argument("--compile", dest="compiled", action="store_true", help="compile the encoder, which takes "
                            "minutes per image size")  # fmt: skip
        parser.add_argument(
            "--shard-size", type=int, default=1024, help="number of images per file (default: %(default)s)"
        )
        parser.add_argument("--engine", choices=("local", "ray"), default="local", help="local encodes in this "
                            "process and those of the same torchrun or accelerate command, ray on a Ray cluster "
                            "(default: %(default)s)")  # fmt: skip
        parser.add_argument("--ray-actors", type=int, metavar="N", help="number of encoding processes with one GPU "
                            "each (default: all GPUs), or with one core each for --device cpu or without a "
                            "GPU")  # fmt: skip
        parser.add_argument("--ray-address", metavar="ADDRESS", help="address of a cluster, such as auto or "
                            "head:6379 (default: RAY_ADDRESS, or else a new Ray instance on this machine)")  # fmt: skip

    def run(self, args: argparse.Namespace) -> None:
        """Encode the images that are not encoded yet, and print what the store holds."""
        if os.environ.get("WORLD_SIZE", "1") == "1":
            refuse_if_held(args.store)  # before imports that take seconds
        from ldm_ae.data import Annotated
        from ldm_ae.latents import Processes, encode_images
        from ldm_ae.latents.store.format import colour_profiles_of

        processes = Processes.from_environment()
        engine = _engine(args)
        if args.colour_profiles is None and (earlier := colour_profiles_of(Path(args.store))) is not None:
            args.colour_profiles = earlier  # an older version that ignored profiles began the store
            if earlier == "ignore" and processes.rank == 0:
                print_notes([
                    f"colour profiles are ignored, as in {args.store} so far; to convert them, encode into a new store"
                ])  # fmt: skip
        model, source, transform = bucketed_inputs(args)
        if args.labels or args.captions:
            source = Annotated(source, labels=args.labels, captions=args.captions)
        source = first_images(source, args.limit)
        config = _config(args)
        with progress_bar("encoding", len(source), shown=processes.rank == 0) as progress:
            summary = encode_images(
                model, source, args.store, transform=transform, config=config, processes=processes, engine=engine,
                progress=progress,
            )  # fmt: skip
        if not processes.rank:
            _print_summary(args.store, summary)


def _config(args: argparse.Namespace) -> EncodeConfig:
    """Build the configuration from the options that are named like its fields."""
    from ldm_ae.latents.encoding.config import EncodeConfig
    from ldm_ae.latents.store.annotated import read_classes

    chosen = {field.name: getattr(args, field.name) for field in fields(EncodeConfig) if hasattr(args, field.name)}
    chosen["classes"] = None if args.classes is None else tuple(read_classes(args.classes))
    return EncodeConfig(**chosen, source_name=args.images)


def _engine(args: argparse.Namespace) -> Engine | None:
    if args.engine == "local":
        for name in ("ray_actors", "ray_address"):
            if getattr(args, name) is not None:
                raise UserError(f"{option_of(name)} has no effect without --engine ray; remove it")
        return None
    from ldm_ae.latents.encoding.engines.ray import RayEngine

    return RayEngine(actors=args.ray_actors, address=args.ray_address)


def _print_summary(store: str, summary: EncodeSummary) -> None:
    from ldm_ae.data import conversion_lines
    from ldm_ae.models.scaling import describe_constant

    done = "is already complete" if summary.already_complete else "written"
    redone = f", {summary.fp32_fallbacks} batches that overflowed encoded in fp32" if summary.fp32_fallbacks else ""
    statistics = summary.statistics
    factor = "no scaling_factor" if statistics.is_constant else f"scaling_factor {statistics.scaling_factor:.5f}"
    print(f"{store} {done}: {summary.images} images, {len(summary.bad)} unusable, in {summary.precision}, "
          f"{factor}{redone}")  # fmt: skip
    if constant := statistics.constant_channels:
        some = (
            f"channels {', '.join(map(str, constant))} of the latents are constant; no scale gives them unit variance"
        )
        print_notes([describe_constant(statistics) if statistics.is_constant else some])
    buckets = ", ".join(f"{size}: {images}" for size, images in summary.buckets.items())
    print(f"{buckets}; {summary.crops.line()}")
    for line in conversion_lines(summary.colour_profiles):
        print(line)
    if (error := statistics.relative_error) is not None:
        print(
            f"error of uint8: {error.square().mean().sqrt():.2%} of a channel's standard deviation, "
            f"at most {error.max():.2%}"
        )
    print("\n".join([*summary.account.lines(), *summary.annotations.lines()]))
    print_notes(summary.warnings)
    print_path("store", store)
