"""`ldm-ae export`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ldm_ae.commands._inputs import choose_precision, print_notes, print_path, square_inputs
from ldm_ae.commands._options import (
    IMAGES,
    add_compute_options,
    add_export_options,
    add_images_options,
    add_model,
    add_out,
    add_overwrite,
)
from ldm_ae.commands.interface import Command
from ldm_ae.core.errors import UserError
from ldm_ae.core.terminal import progress_bar
from ldm_ae.io.files import require_new_folder

if TYPE_CHECKING:
    from ldm_ae.data import Account
    from ldm_ae.evaluation import ActivationRanges
    from ldm_ae.models import ChannelStatistics

_BEST = "best"
"""Value of --ema that selects the length by validation."""


class Export(Command):
    """Export of a model to the formats of other projects."""

    name = "export"
    summary = "Write a model for other projects: a diffusers folder, CompVis keys, or a pipeline."
    order = 70

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the model, the format and the scale."""
        add_model(parser)
        add_out(parser)
        add_overwrite(parser)
        parser.add_argument("--format", choices=("diffusers", "ldm"), default="diffusers", help="format (default: "
                            "%(default)s)")  # fmt: skip
        parser.add_argument("--ema", metavar="LENGTH", help="for a run that was trained with training.power_ema true: "
                            "export the average of this length (sigma_rel), such as 0.08, combined from the stored "
                            "ones; `best` scores several lengths on the run's held-out images, prints a table and "
                            "exports the best by training.best_metric")  # fmt: skip
        parser.add_argument("--into", metavar="PIPELINE", help="write a copy of this diffusers pipeline folder to OUT, "
                            "in which the model is the autoencoder; the pipeline's scale is kept, because its "
                            "diffusion model expects latents scaled as before")  # fmt: skip
        parser.add_argument("--other-latents", action="store_true", help="with --into: accept a model with another "
                            "encoder, whose latents the diffusion model was not trained on; it keeps its own "
                            "scale")  # fmt: skip
        parser.add_argument("--images", help="measure scaling_factor on these images, and on the first of them "
                            f"whether the model is safe in fp16: {IMAGES}")  # fmt: skip
        add_export_options(parser)
        parser.add_argument("--sample-size", type=int, metavar="SIZE", help="sample_size of the configuration: the "
                            "side in pixels that commands take by default (default: that of the training "
                            "crops)")  # fmt: skip
        add_images_options(parser)
        add_compute_options(parser)

    def run(self, args: argparse.Namespace) -> None:
        """Write the files, and print the scale and whether the model is safe in fp16."""
        if args.other_latents and args.into is None:
            raise UserError("--other-latents has no effect without --into; remove it")
        with nullcontext() if args.ema is None else _averaged(args):
            if args.into is not None:
                _into_pipeline(args)
            elif args.format == "ldm":
                _to_ldm(args)
            else:
                _to_diffusers(args)


@contextmanager
def _averaged(args: argparse.Namespace) -> Iterator[None]:
    """Let MODEL be a temporary folder with the average that `--ema` requests."""
    from ldm_ae.core.devices import pick_device
    from ldm_ae.models import load_autoencoder
    from ldm_ae.training.averages.best import best_of, held_out, score_lengths, table
    from ldm_ae.training.averages.posthoc import StoredAverages

    stored = StoredAverages(args.model)
    if args.ema == _BEST:
        device = pick_device(args.device)
        held, lengths = (
            held_out(args.model, stored.phase, device, load_autoencoder(args.model).pixel_spec),
            stored.lengths_to_compare(),
        )
        with progress_bar("scoring lengths", len(lengths)) as progress:
            scored = score_lengths(stored, lengths, held, device, lambda done: progress(done, len(lengths)))
        length = best_of(scored).length
        print("\n".join(table(scored, held.validation.best.name)))
    else:
        length = _length(args.ema)
    model = stored.model(length)
    print(f"average of length {length:g} at step {stored.step}")
    with TemporaryDirectory(prefix="ldm-ae-average-") as folder:
        model.save_pretrained(folder)
        args.model = folder
        yield


def _length(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--ema is '{text}'; expected a length such as 0.08, or {_BEST}") from None


def _into_pipeline(args: argparse.Namespace) -> None:
    set_too = {
        "--format ldm": args.format == "ldm", "--images": args.images, "--scaling": args.scaling != "auto",
        "--per-channel": args.per_channel is not None, "--sample-size": args.sample_size, "--overwrite": args.overwrite,
    }  # fmt: skip
    if excluded := [option for option, given in set_too.items() if given]:
        raise UserError(f"--into and {excluded[0]} exclude each other; remove one of them")
    from ldm_ae.core.precision import DTYPES
    from ldm_ae.interop import export_into_pipeline
    from ldm_ae.models import load_autoencoder

    require_new_folder(args.out, "the pipeline")
    model = load_autoencoder(args.model, config=args.config)
    found = export_into_pipeline(
        model, args.into, args.out, weights=DTYPES[args.weights], other_latents=args.other_latents
    )
    print(f"{found.part}: {found.scale}")
    print_notes(found.notes)
    print_path(f"pipeline for {found.class_name}.from_pretrained", found.path)


def _to_ldm(args: argparse.Namespace) -> None:
    scaled = args.images or args.scaling != "auto" or args.per_channel is not None
    if scaled or args.sample_size or args.weights != "fp32":
        raise UserError("--format ldm cannot store a scale or a size, and is float32; remove these options")
    from ldm_ae.interop import export_ldm
    from ldm_ae.interop.ldm import LDM_FILES, scale_lines
    from ldm_ae.models import load_autoencoder

    require_new_folder(args.out, "the model", own_files=LDM_FILES, overwrite=args.overwrite)
    model = load_autoencoder(args.model, config=args.config)
    out = export_ldm(model, args.out, overwrite=args.overwrite)
    if model.latent_spec.shift_factor or model.latent_spec.latents_std is not None:
        print_notes([" ".join(scale_lines(model.latent_spec))])
    print_path("model with CompVis keys", out)


def _to_diffusers(args: argparse.Namespace) -> None:
    from ldm_ae.core.precision import DTYPES
    from ldm_ae.interop import export_diffusers
    from ldm_ae.interop.diffusers import DIFFUSERS_FILES
    from ldm_ae.interop.scaling import plan_scaling, scaling_line
    from ldm_ae.models import load_autoencoder

    require_new_folder(args.out, "the model", own_files=DIFFUSERS_FILES, overwrite=args.overwrite)
    model, statistics = load_autoencoder(args.model, config=args.config), None
    plan = plan_scaling(model, args.scaling, per_channel=args.per_channel, images=args.images is not None)
    print_notes(plan.notes)
    if args.images:
        choose_precision(args)
        found, activations, account = measure_on_images(args)
        statistics = found if plan.measure else None
        print("\n".join(account.lines()))
        print(scaling_line(model.latent_spec, statistics, args.images, per_channel=args.per_channel))
        print(activations.line())
    out = export_diffusers(
        model, args.out, scaling=statistics, per_channel=args.per_channel, weights=DTYPES[args.weights],
        sample_size=args.sample_size, overwrite=args.overwrite,
    )  # fmt: skip
    print_path(f"model for {type(model.net).__name__}.from_pretrained", out)


def measure_on_images(args: argparse.Namespace) -> tuple[ChannelStatistics, ActivationRanges, Account]:
    """Return the scale of the latents over all images, the activation range over the first images, and the account."""
    from ldm_ae.data import EvaluationLoader
    from ldm_ae.evaluation import activation_ranges, first_batches
    from ldm_ae.interop import measure_scaling
    from ldm_ae.models import for_inference

    model, source, transform = square_inputs(args)
    loader = EvaluationLoader(
        source, transform, batch_size=args.batch_size, workers=args.workers, max_bad_fraction=args.max_bad_fraction
    )
    with progress_bar("measuring", len(source)) as progress:
        first, batches = first_batches(loader)
        if not first:
            raise UserError(f"{args.images} has no images to measure the scale on")
        activations = activation_ranges(for_inference(model, device=args.device), first)
        runner = for_inference(model, device=args.device, precision=args.precision)
        scaling = measure_scaling(runner, batches, progress=lambda done: progress(done, len(source)))
    return scaling, activations, source.account()
