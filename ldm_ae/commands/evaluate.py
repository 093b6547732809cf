"""`ldm-ae evaluate`."""

from __future__ import annotations

import argparse
from functools import partial

from ldm_ae.commands._inputs import (
    check_limit,
    choose_precision,
    chosen_view,
    metric_networks,
    print_path,
    sized_inputs,
)
from ldm_ae.commands._options import (
    add_compute_options,
    add_images,
    add_images_options,
    add_limit,
    add_metrics_options,
    add_model,
    add_overwrite,
    add_tiling_options,
)
from ldm_ae.commands._stages import Stages
from ldm_ae.commands.interface import Command
from ldm_ae.core.errors import UserError
from ldm_ae.io.files import new_folder, require_new_folder


class Evaluate(Command):
    """Evaluation of a model: its scores and example images."""

    name = "evaluate"
    summary = "Score a model on images: metrics.json and a report.html with images."
    order = 30

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the model, the images and the networks of the scores."""
        add_model(parser)
        add_images(parser)
        parser.add_argument("--out", default="evaluation", help="folder for metrics.json and report.html "
                            "(default: %(default)s)")  # fmt: skip
        add_overwrite(parser)
        add_limit(parser)
        add_metrics_options(parser, default="default")
        parser.add_argument("--prior", metavar="FOLDER", help="prior of scripts/train_code_prior.py, which adds the "
                            "rate of a discrete model's codes under it")  # fmt: skip
        add_images_options(parser, native=True)
        add_compute_options(parser)
        add_tiling_options(parser)

    def run(self, args: argparse.Namespace) -> None:
        """Write metrics.json and report.html, and print the scores."""
        from ldm_ae.data import EvaluationLoader
        from ldm_ae.evaluation import evaluate, named_metrics, write_report
        from ldm_ae.evaluation.report.summary import summary_lines
        from ldm_ae.evaluation.report.write import REPORT_FILES
        from ldm_ae.priors import load_prior

        require_new_folder(args.out, "the report", own_files=REPORT_FILES, overwrite=args.overwrite)
        with new_folder(args.out) as folder:
            choose_precision(args)
            metrics = named_metrics(args.metrics, **metric_networks(args))
            view = chosen_view(args)
            prior = None if args.prior is None else load_prior(args.prior)
            if prior is not None and not any(metric.name == "rate" for metric in metrics):
                chosen = " ".join(args.metrics)
                raise UserError(f"--prior has no effect with --metrics {chosen}; remove it, or add rate")
            model, source, transform = sized_inputs(args)
            check_limit(args.limit)
            count = min(args.limit or len(source), len(source))
            loader = EvaluationLoader(
                source, transform, batch_size=args.batch_size, workers=args.workers,
                max_bad_fraction=args.max_bad_fraction, indices=range(count),
            )  # fmt: skip
            with Stages() as progress:
                evaluation = evaluate(
                    model, loader, source=args.images, transform_description=transform.describe(),
                    model_name=str(args.model), metrics=metrics, prior=prior, view=view,
                    precision=args.precision, device=args.device,
                    progress=lambda done: progress("evaluating", done, count),
                    score_progress=partial(progress, "computing scores"),
                )  # fmt: skip
            write_report(evaluation, folder)
            print("\n".join([*summary_lines(evaluation), *source.account().lines()]))
            print_path("images and tables", folder / "report.html")
