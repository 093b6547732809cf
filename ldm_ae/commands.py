"""What each command does: thin over functions of the package, which are imported where they are needed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm_ae.core.errors import UserError
from ldm_ae.core.resources import DEFAULT_MODEL
from ldm_ae.core.terminal import ProgressDisplay, lines_of, progress_bar

if TYPE_CHECKING:
    from ldm_ae.data import Account, BucketTransform, ImageTransform, Source, WholeTransform
    from ldm_ae.evaluation import ActivationRanges
    from ldm_ae.latents.encoding.jobs import Engine
    from ldm_ae.models import Autoencoder, ChannelStatistics


def run_train(arguments: list[str]) -> None:
    """`ldm-ae train`."""
    from ldm_ae.training.run import config_parser, train

    train(arguments, config_parser(prog="ldm-ae train"))


def run_quickstart(args: argparse.Namespace) -> None:
    """`ldm-ae quickstart`."""
    from ldm_ae.quickstart import quickstart

    quickstart(Path(args.out), steps=args.steps)


def run_evaluate(args: argparse.Namespace) -> None:
    """`ldm-ae evaluate`."""
    from ldm_ae.data import EvaluationLoader
    from ldm_ae.evaluation import evaluate, write_report
    from ldm_ae.evaluation.metrics.networks import feature_network, perceptual_network
    from ldm_ae.evaluation.report.summary import summary_lines
    from ldm_ae.io.files import new_folder
    from ldm_ae.priors import load_prior

    with new_folder(args.out) as folder:
        _choose_precision(args)
        prior = None if args.prior is None else load_prior(args.prior)
        model, source, transform = _inputs(args)
        if args.limit is not None and args.limit < 1:
            raise UserError(f"--limit is {args.limit}; it must be at least 1")
        count = min(args.limit or len(source), len(source))
        loader = EvaluationLoader(
            source, transform, batch_size=args.batch_size, workers=args.workers, max_bad_fraction=args.max_bad_fraction,
            indices=range(count),
        )  # fmt: skip
        with progress_bar("evaluating", count) as progress:
            evaluation = evaluate(
                model, loader, source=args.images, transform_description=transform.describe(),
                model_name=str(args.model), perceptual=perceptual_network(args.perceptual),
                features=feature_network(args.features), prior=prior, precision=args.precision, device=args.device,
                progress=lambda done: progress(done, count),
            )  # fmt: skip
        write_report(evaluation, folder)
        print("\n".join([*summary_lines(evaluation), *source.account().lines()]))
        print(f"pictures and tables: {folder / 'report.html'}")


def run_reconstruct(args: argparse.Namespace) -> None:
    """`ldm-ae reconstruct`."""
    from ldm_ae.data import WholeTransform
    from ldm_ae.latents import reconstruct_images

    _choose_precision(args)
    model, source, transform = _whole_inputs(args) if args.whole else _bucketed_inputs(args)
    with progress_bar("reconstructing", len(source)) as progress:
        written = reconstruct_images(
            model, source, args.out, transform=transform, batch_size=args.batch_size, workers=args.workers,
            device=args.device, precision=args.precision, max_bad_fraction=args.max_bad_fraction, progress=progress,
        )  # fmt: skip
    print("\n".join([*source.account().lines(), f"{written.images} reconstructions in {args.out}"]))
    if not isinstance(transform, WholeTransform):
        sizes = ", ".join(f"{height}x{width}" for height, width in transform.sizes)
        print(f"of {sizes} pixels: {written.crops.line()}; --whole keeps all of an image")


def run_encode(args: argparse.Namespace) -> None:
    """`ldm-ae encode`."""
    from ldm_ae.data import Annotated, conversion_lines
    from ldm_ae.latents import Processes, encode_images
    from ldm_ae.latents.store.annotated import read_classes
    from ldm_ae.latents.store.format import colour_profiles_of
    from ldm_ae.models.scaling import describe_constant

    processes = Processes.from_environment()
    engine = _engine(args)
    if args.colour_profiles is None and (earlier := colour_profiles_of(Path(args.store))) is not None:
        args.colour_profiles = earlier  # goes on as it was begun, by a version that ignored them
        if earlier == "ignore" and processes.rank == 0:
            _note([f"colour profiles are ignored, as {args.store} was made; to convert them, encode into a new store"])
    model, source, transform = _bucketed_inputs(args)
    if args.labels or args.captions:
        source = Annotated(source, labels=args.labels, captions=args.captions)
    classes = None if args.classes is None else read_classes(args.classes)
    with progress_bar("encoding", len(source), shown=processes.rank == 0) as progress:
        summary = encode_images(
            model, source, args.store, transform=transform, source_name=args.images, classes=classes,
            batch_size=args.batch_size, workers=args.workers, device=args.device, precision=args.precision,
            dtype=args.dtype, latents=args.latents, content=args.content, flips=not args.no_flips, seed=args.seed,
            shard_size=args.shard_size, max_bad_fraction=args.max_bad_fraction, compiled=args.compile,
            check=not args.no_check, processes=processes, engine=engine, progress=progress,
        )  # fmt: skip
    if processes.rank:
        return
    done = "was complete already" if summary.already_complete else "written"
    redone = f", {summary.fp32_fallbacks} batches that overflowed encoded in fp32" if summary.fp32_fallbacks else ""
    statistics = summary.statistics
    factor = "no scaling_factor" if statistics.is_constant else f"scaling_factor {statistics.scaling_factor:.5f}"
    print(f"{args.store} {done}: {summary.images} images, {len(summary.bad)} unusable, in {summary.precision}, "
          f"{factor}{redone}")  # fmt: skip
    if constant := statistics.constant_channels:
        some = f"channels {', '.join(map(str, constant))} of the latents are constant; no scale whitens them"
        _note([describe_constant(statistics) if statistics.is_constant else some])
    buckets = ", ".join(f"{size}: {images}" for size, images in summary.buckets.items())
    print(f"{buckets}; {summary.crops.line()}")
    for line in conversion_lines(summary.colour_profiles):
        print(line)
    if (error := summary.statistics.relative_error) is not None:
        print(f"error of uint8: {error.square().mean().sqrt():.2%} of a channel's deviation, at most {error.max():.2%}")
    print("\n".join([*summary.account.lines(), *summary.annotations.lines()]))
    _note(summary.warnings)


def _choose_precision(args: argparse.Namespace) -> None:
    """Put what `--precision auto` means on this machine in its place, and print it."""
    if args.precision != "auto":
        return
    from ldm_ae.core.devices import pick_device
    from ldm_ae.core.precision import inference_numerics

    numerics = inference_numerics("auto", pick_device(args.device))
    args.precision = numerics.precision
    print(f"precision: {numerics.line()}", file=sys.stderr)


def _engine(args: argparse.Namespace) -> Engine | None:
    if args.engine == "local":
        for name in ("ray_actors", "ray_address"):
            if getattr(args, name) is not None:
                raise UserError(f"--{name.replace('_', '-')} says nothing without --engine ray")
        return None
    from ldm_ae.latents.encoding.engines.ray import RayEngine

    return RayEngine(actors=args.ray_actors, address=args.ray_address)


def run_decode(args: argparse.Namespace) -> None:
    """`ldm-ae decode`."""
    from ldm_ae.core.allocator import keep_freed_memory
    from ldm_ae.core.devices import pick_device
    from ldm_ae.latents import decode_store
    from ldm_ae.models import load_autoencoder

    keep_freed_memory(pick_device(args.device))
    _choose_precision(args)
    model = load_autoencoder(args.model)
    with progress_bar("decoding", None) as progress:
        count = decode_store(
            model, args.store, args.out, latents=args.latents, batch_size=args.batch_size, device=args.device,
            precision=args.precision, allow_other_model=args.other_model, progress=progress,
        )  # fmt: skip
    print(f"{count} images in {args.out}")


def run_export(args: argparse.Namespace) -> None:
    """`ldm-ae export`."""
    from ldm_ae.core.precision import DTYPES
    from ldm_ae.interop import export_diffusers, export_ldm
    from ldm_ae.interop.ldm import scale_lines
    from ldm_ae.interop.scaling import plan_scaling, scaling_line
    from ldm_ae.models import load_autoencoder

    if args.format == "ldm":
        scaled = args.images or args.scaling != "auto" or args.per_channel is not None
        if scaled or args.sample_size or args.weights != "fp32":
            raise UserError("--format ldm has no place for a scale or a size, and is float32; leave those options out")
        model = load_autoencoder(args.model)
        print(f"CompVis keys in {export_ldm(model, args.out)}")
        if model.latent_spec.shift_factor or model.latent_spec.latents_std is not None:
            _note([" ".join(scale_lines(model.latent_spec))])
        return
    model, statistics = load_autoencoder(args.model), None
    plan = plan_scaling(model, args.scaling, per_channel=args.per_channel, images=args.images is not None)
    _note(plan.notes)
    if args.images:
        _choose_precision(args)
        found, activations, account = _measure(args)
        statistics = found if plan.measure else None
        print("\n".join(account.lines()))
        print(scaling_line(model.latent_spec, statistics, args.images, per_channel=args.per_channel))
        print(activations.line())
    out = export_diffusers(
        model, args.out, scaling=statistics, per_channel=args.per_channel, weights=DTYPES[args.weights],
        sample_size=args.sample_size,
    )  # fmt: skip
    print(f"{type(model.net).__name__}.from_pretrained opens {out}")


def run_inspect(args: argparse.Namespace) -> None:
    """`ldm-ae inspect`: UserError for what is not sound, so that the exit status tells."""
    from ldm_ae.inspection import inspect_path

    with ProgressDisplay("checking", None, unit="checks", images_per_unit=None) as progress:
        found = inspect_path(args.path, progress=progress)
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(lines_of(found)))
    if found["problems"]:
        raise UserError(f"{args.path} is not sound: {found['problems'][0]}")


def run_convert(args: argparse.Namespace) -> None:
    """`ldm-ae convert`."""
    if args.format == "store":
        _read_into_store(args)
        return
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
    _note(summary.warnings)
    print(f"{summary.images} images for {args.format} in {summary.path}")


def _read_into_store(args: argparse.Namespace) -> None:
    from ldm_ae.latents.conversion.import_store import import_latents
    from ldm_ae.models import load_autoencoder

    for name in ("bucket", "fold", "images", "arch", "name", "files", "no_flips"):
        if getattr(args, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} says nothing to --format store; leave it out")
    model = None if args.model is None else load_autoencoder(args.model)
    with progress_bar("reading", None) as progress:
        summary = import_latents(args.source, args.out, model=model, progress=progress)
    _note(summary.warnings)
    print(f"{summary.images} images of {summary.format} in the store {summary.path}")


def _note(warnings: list[str]) -> None:
    for warning in warnings:
        print(f"note: {warning}", file=sys.stderr)


def run_import(args: argparse.Namespace) -> None:
    """`ldm-ae import`."""
    from ldm_ae.interop import import_ldm

    found = import_ldm(args.checkpoint, args.out, config=args.config, family=args.family)
    print("\n".join(found.file.lines()))
    shift = "" if found.scale.shift is None else f", shift_factor {found.scale.shift:g}"
    print(f"scaling_factor {found.scale.factor:.6g}{shift}: {found.scale.source}")
    _note(list(found.notes))
    print(f"written to {found.path}; {found.left_out} tensors that are not the network's left out")


# ------------------------------------------------------------------------------------------------------ what they share


def _inputs(args: argparse.Namespace) -> tuple[Autoencoder, Source, ImageTransform]:
    """Model, images and their transform to one size, each checked before anything is computed."""
    from ldm_ae.data import ImageTransform

    model, source = _model_and_images(args)
    size = args.size if args.size is not None else model.sample_size
    model.latent_spec.latent_size(size, size)
    resize = args.resize
    if resize is not None and resize != "none":
        if not resize.isdigit():
            raise UserError(f"--resize is '{resize}'; give a number of pixels, or none")
        resize = int(resize)
    return model, source, ImageTransform(size=size, resize=resize, crop=args.crop, **_decoding(args))


def _decoding(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a transform that say how files are decoded."""
    options = {"colour_profiles": args.colour_profiles, "max_pixels": args.max_pixels}
    return {name: value for name, value in options.items() if value is not None}


def _whole_inputs(args: argparse.Namespace) -> tuple[Autoencoder, Source, WholeTransform]:
    """The same where images are kept whole."""
    from ldm_ae.data import WholeTransform

    others = [name for name in ("sizes", "area", "multiple", "max_ratio") if getattr(args, name) is not None]
    others += ["crop"] * (args.crop != "center") + ["resize"] * (args.resize not in (None, "none"))
    others += ["size"] * (args.resize == "none" and args.size is not None)
    if others:
        raise UserError(f"--whole does not go with --{others[0].replace('_', '-')}; leave one of them out")
    model, source = _model_and_images(args)
    shorter = None if args.resize == "none" else args.size or model.sample_size
    if shorter is not None:
        model.latent_spec.latent_size(shorter, shorter)
    return model, source, WholeTransform(shorter, multiple=model.latent_spec.downsample_factor, **_decoding(args))


def _bucketed_inputs(args: argparse.Namespace) -> tuple[Autoencoder, Source, ImageTransform | BucketTransform]:
    """The same where `--sizes` or `--area` may give several sizes."""
    from ldm_ae.data import BucketTransform, ImageTransform, sizes_of_area

    given = [name for name in ("sizes", "area") if getattr(args, name) is not None]
    if args.area is None and (args.multiple is not None or args.max_ratio is not None):
        raise UserError("--multiple and --max-ratio belong to --area; leave them out")
    if not given:
        return _inputs(args)
    others = [name for name in (*given[1:], "size", "resize") if getattr(args, name) is not None]
    if others := [*others, *["crop"] * (args.crop != "center")]:
        raise UserError(f"--{others[0]} does not go with --{given[0]}; leave one of them out")
    if args.sizes is not None:
        sizes = [_size(text, "sizes") for text in args.sizes.split(",")]
    else:
        limits = {"multiple": args.multiple, "max_ratio": args.max_ratio}
        limits = {name: value for name, value in limits.items() if value is not None}
        sizes = sizes_of_area(*_size(args.area, "area"), **limits)
    model, source = _model_and_images(args)
    for size in sizes:
        model.latent_spec.latent_size(*size)
    options = _decoding(args)
    if len(set(sizes)) == 1:
        return model, source, ImageTransform(size=sizes[0], **options)
    return model, source, BucketTransform(sizes, **options)


def _size(text: str, option: str) -> tuple[int, int]:
    """(height, width) of HxW."""
    height, times, width = text.strip().partition("x")
    if not times or not height.isdecimal() or not width.isdecimal():
        raise UserError(f"--{option} has '{text}'; give height x width in pixels, such as 256x192")
    return int(height), int(width)


def _model_and_images(args: argparse.Namespace) -> tuple[Autoencoder, Source]:
    from ldm_ae.core.allocator import keep_freed_memory
    from ldm_ae.core.devices import pick_device
    from ldm_ae.data import open_source
    from ldm_ae.models import is_model_folder, load_autoencoder

    if args.model == DEFAULT_MODEL and is_model_folder(args.images):
        raise UserError(f"{args.images} is a model; which images it is for, and what comes after them, is missing")
    if args.batch_size < 1 or args.workers < 0:
        raise UserError("--batch-size must be at least 1 and --workers at least 0")
    keep_freed_memory(pick_device(args.device))
    return load_autoencoder(args.model), open_source(args.images)


def _measure(args: argparse.Namespace) -> tuple[ChannelStatistics, ActivationRanges, Account]:
    """The scale of the latents over all images, the range of activations over the first, and what was read."""
    from ldm_ae.data import EvaluationLoader
    from ldm_ae.evaluation import activation_ranges, first_batches
    from ldm_ae.interop import measure_scaling
    from ldm_ae.models import for_inference

    model, source, transform = _inputs(args)
    loader = EvaluationLoader(
        source, transform, batch_size=args.batch_size, workers=args.workers, max_bad_fraction=args.max_bad_fraction
    )
    with progress_bar("measuring", len(source)) as progress:
        first, batches = first_batches(loader)
        if not first:
            raise UserError(f"there are no images to measure on in {args.images}")
        activations = activation_ranges(for_inference(model, device=args.device), first)
        runner = for_inference(model, device=args.device, precision=args.precision)
        scaling = measure_scaling(runner, batches, progress=lambda done: progress(done, len(source)))
    return scaling, activations, source.account()


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "quickstart": run_quickstart,
    "evaluate": run_evaluate,
    "reconstruct": run_reconstruct,
    "encode": run_encode,
    "decode": run_decode,
    "export": run_export,
    "inspect": run_inspect,
    "import": run_import,
    "convert": run_convert,
}
"""What each command runs; `train` has a parser of its own."""
