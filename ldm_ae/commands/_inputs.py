"""Build a model, images and their transform from the shared options, and check each before any computation."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm_ae.commands._options import BUCKET_OPTIONS, NATIVE, NETWORKS
from ldm_ae.core.errors import UserError
from ldm_ae.core.resources import DEFAULT_MODEL

if TYPE_CHECKING:
    from ldm_ae.data import BucketTransform, ImageTransform, Source, WholeTransform
    from ldm_ae.images.views import View
    from ldm_ae.models import Autoencoder


def print_notes(notes: Sequence[str]) -> None:
    """Print each note as a line on stderr."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def print_path(what: str, path: str | Path) -> None:
    """Print the path of a result, the last line of each command that writes one."""
    print(f"{what}: {path}")


def option_of(name: str) -> str:
    """Return the option that argparse stores as `name`."""
    return f"--{name.replace('_', '-')}"


def chosen_view(args: argparse.Namespace) -> View | None:
    """Return the view of --view; None if it is not given."""
    from ldm_ae.images.views import parse_view

    return None if args.view is None else parse_view(args.view)


def metric_networks(args: argparse.Namespace) -> dict[str, str | None]:
    """Return the networks of the metrics, as `named_metrics` takes them."""
    return {name: getattr(args, name) for name in NETWORKS}


def choose_precision(args: argparse.Namespace) -> None:
    """Replace `--precision auto` by the precision that is fast on this machine, and print it."""
    if args.precision != "auto":
        return
    from ldm_ae.core.devices import pick_device
    from ldm_ae.core.precision import inference_numerics

    numerics = inference_numerics("auto", pick_device(args.device))
    args.precision = numerics.precision
    print(f"precision: {numerics.line()}", file=sys.stderr)


def tiled(model: Autoencoder, args: argparse.Namespace) -> Autoencoder:
    """Return the model, or with `--tile` a `Tiled` around it, whose method is printed.

    Raises:
        UserError: The tiles do not fit the model, or another option has no effect.
    """
    from ldm_ae.models import Tiled

    if not args.tile:
        for name in ("overlap", "tiling"):
            if getattr(args, name) is not None:
                raise UserError(f"--{name} has no effect without --tile; remove it, or add --tile")
        return model
    exact = None if args.tiling in (None, "auto") else args.tiling == "exact"
    found = Tiled(model, tile=args.tile, overlap=args.overlap, exact=exact)
    if exact and args.overlap is not None:
        raise UserError("--overlap has no effect on exact tiling; remove it, or use --tiling blended")
    if found.exact and getattr(args, "compiled", False):
        raise UserError("--compile and exact tiling exclude each other; remove --compile, or add --tiling blended")
    unused = "; --overlap has no effect" if found.exact and args.overlap is not None else ""
    print(f"tiling: {found.describe()}{unused}", file=sys.stderr)
    return found


def square_inputs(args: argparse.Namespace) -> tuple[Autoencoder, Source, ImageTransform]:
    """Return the model, the images and the transform to one size."""
    from ldm_ae.data import ImageTransform

    model, source = _model_and_images(args)
    size = args.size if args.size is not None else model.sample_size
    model.latent_spec.latent_size(size, size)
    return model, source, ImageTransform(size=size, pixels=model.pixel_spec, **square_options(args))


def square_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of an `ImageTransform` except for its size."""
    resize = args.resize
    if resize is not None and resize != "none":
        if not resize.isdigit():
            raise UserError(f"--resize is '{resize}'; give a number of pixels, or none")
        resize = int(resize)
    return {"resize": resize, "crop": args.crop, **decoding_options(args)}


def whole_inputs(args: argparse.Namespace) -> tuple[Autoencoder, Source, WholeTransform]:
    """Return the model, the images and the transform that keeps images whole, for `--whole` and `--size native`."""
    from ldm_ae.data import WholeTransform

    native = args.size == NATIVE
    others = [name for name in BUCKET_OPTIONS if getattr(args, name, None) is not None]
    others += ["crop"] * (args.crop != "center") + ["resize"] * (args.resize not in (None, "none"))
    others += ["size"] * (args.resize == "none" and args.size is not None and not native)
    if others:
        raise UserError(
            f"--{'size native' if native else 'whole'} and {option_of(others[0])} exclude each other; remove one of "
            "them"
        )
    model, source = _model_and_images(args)
    spec = model.latent_spec
    shorter = None if native or args.resize == "none" else args.size or model.sample_size
    if native and spec.image_size is not None:
        raise UserError(f"the model takes images of {spec.image_size}x{spec.image_size} only; remove --size native")
    if shorter is not None:
        spec.latent_size(shorter, shorter)
    multiple = spec.image_multiple if shorter is None else spec.downsample_factor
    return model, source, WholeTransform(shorter, multiple=multiple, pixels=model.pixel_spec, **decoding_options(args))


def sized_inputs(args: argparse.Namespace) -> tuple[Autoencoder, Source, ImageTransform | WholeTransform]:
    """Return the model, the images and the transform to one size, or with `--size native` to each image's own."""
    return whole_inputs(args) if args.size == NATIVE else square_inputs(args)


def bucketed_inputs(
    args: argparse.Namespace,
) -> tuple[Autoencoder, Source, ImageTransform | BucketTransform | WholeTransform]:
    """Return the model, the images and the transform; `--sizes` or `--area` may give several sizes."""
    from ldm_ae.data import BucketTransform, ImageTransform, parse_size, sizes_of_area

    if args.size == NATIVE:
        return whole_inputs(args)
    given = [name for name in ("sizes", "area") if getattr(args, name) is not None]
    if args.area is None and (args.multiple is not None or args.max_ratio is not None):
        raise UserError("--multiple and --max-ratio have no effect without --area; remove them, or add --area")
    if not given:
        return square_inputs(args)
    others = [name for name in (*given[1:], "size", "resize") if getattr(args, name) is not None]
    if others := [*others, *["crop"] * (args.crop != "center")]:
        raise UserError(f"--{others[0]} and --{given[0]} exclude each other; remove one of them")
    if args.sizes is not None:
        sizes = [parse_size(text, "--sizes") for text in args.sizes.split(",")]
    else:
        limits = {"multiple": args.multiple, "max_ratio": args.max_ratio}
        limits = {name: value for name, value in limits.items() if value is not None}
        sizes = sizes_of_area(*parse_size(args.area, "--area"), **limits)
    model, source = _model_and_images(args)
    for size in sizes:
        model.latent_spec.latent_size(*size)
    options = decoding_options(args) | {"pixels": model.pixel_spec}
    if len(set(sizes)) == 1:
        return model, source, ImageTransform(size=sizes[0], **options)
    return model, source, BucketTransform(sizes, **options)


def first_images(source: Source, limit: int | None) -> Source:
    """Return the first `limit` images of a source, the value of --limit; None for all."""
    from ldm_ae.data import Subset

    check_limit(limit)
    return source if limit is None else Subset(source, range(min(limit, len(source))))


def check_limit(limit: int | None) -> None:
    """Raise UserError for a value of --limit below 1."""
    if limit is not None and limit < 1:
        raise UserError(f"--limit is {limit}; it must be at least 1")


def decoding_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the transform options that control how files are decoded."""
    options = {"colour_profiles": args.colour_profiles, "max_pixels": args.max_pixels}
    return {name: value for name, value in options.items() if value is not None}


def _model_and_images(args: argparse.Namespace) -> tuple[Autoencoder, Source]:
    from ldm_ae.core.allocator import keep_freed_memory
    from ldm_ae.core.devices import pick_device
    from ldm_ae.data import open_source
    from ldm_ae.models import is_model_folder, load_autoencoder
    from ldm_ae.models.loading.places import local_place

    if args.model == DEFAULT_MODEL and is_model_folder(args.images):
        raise UserError(
            f"{args.images} is a model, and the arguments after it are missing; give MODEL IMAGES and those that follow"
        )
    if args.batch_size < 1 or args.workers < 0:
        raise UserError(
            f"--batch-size must be at least 1 and --workers at least 0; got {args.batch_size} and {args.workers}"
        )
    keep_freed_memory(pick_device(args.device))
    place = local_place(args.model)  # wrong names are refused before the import of diffusers, which takes seconds
    source = open_source(args.images)
    model = load_autoencoder(place, config=args.config)
    return tiled(model, args) if hasattr(args, "tile") else model, source
