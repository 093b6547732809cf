"""Score how well latents separate known factors of images, and sweep the weight of the KL.

    python scripts/disentanglement.py MODEL [MODEL ...] --out runs/scores
    python scripts/disentanglement.py --config configs/beta_vae_sprites.yaml --betas 1 4 16 --seeds 0 1 2 \\
        --steps 2000 --out runs/sweep

The images are `sprites:FIRST-END`, whose factors (shape, scale, rotation, x, y) are known. The codes are the means of
the posteriors. For each model it prints every score of `ldm_ae.representation.disentanglement`, the ELBO in nats (only
for models with a likelihood), the rate in bits per pixel, the mean squared error of draws, the total correlation and
the number of active latents.

A sweep trains the recipe with each weight of the KL (`objective.regularization_weights.kl`) and each seed into
OUT/runs/; a run that is there is resumed or taken as it is. It also prints which weight has the best score for each
seed, and the rank correlation over all runs of each score with the numbers that need no factors: Locatello et al.,
arXiv 1811.12359, show that a model cannot be selected without labels or an inductive bias.

OUT/disentanglement.json has all numbers, OUT/disentanglement.png the scores over the weight, a line for each seed, and
OUT/rate_distortion.png rates and errors beside JPEG's on the same images.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, pstdev
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from ldm_ae.core.devices import pick_device
from ldm_ae.core.environment import git_commit, package_versions
from ldm_ae.core.errors import RunError, UserError, exit_status
from ldm_ae.data import open_source
from ldm_ae.data.sources.sprites import SpritesSource
from ldm_ae.data.sprites import COUNTS
from ldm_ae.evaluation.codecs import code_images, missing_codec
from ldm_ae.io.files import make_folder, write_json, writing
from ldm_ae.models import for_inference, load_autoencoder
from ldm_ae.representation.bound import elbo
from ldm_ae.representation.disentanglement import SCORES, all_scores
from ldm_ae.representation.encoded import encode, in_batches, read_images
from ldm_ae.representation.information import (
    Point,
    active_units,
    rate_distortion,
    rate_distortion_figure,
    total_correlation,
)

UNSUPERVISED = {
    "elbo": "ELBO, nats", "rate": "rate, bits per pixel", "error": "squared error", "total_correlation": "total "
    "correlation, nats", "active_units": "active latents",
}  # fmt: skip
"""Titles of the numbers that need no factors, by key."""
CORRELATION_IMAGES = 2000
"""Number of images of the total correlation, whose time grows with the square."""
QUALITIES = (1, 5, 10, 20, 40, 80)


class Run(NamedTuple):
    """A model to score."""

    name: str
    path: str
    beta: float | None = None
    """Weight of the KL in a sweep."""
    seed: int | None = None


def score(run: Run, images: str, factors: NDArray[np.int64], device: str, size: int | None) -> dict[str, float]:
    """Return the scores of a model by key."""
    model = for_inference(load_autoencoder(run.path), device=pick_device(device))
    pixel_values = read_images(model, open_source(images), size=size).pixel_values
    codes = encode(model, pixel_values)
    found = all_scores(codes.means.numpy(), factors)
    if codes.log_variances is not None:
        if model.likelihood is not None:
            parts = [elbo(model, part).nats for part in in_batches(pixel_values)]
            found["elbo"] = float(sum(part.sum() for part in parts)) / len(pixel_values)
        point = rate_distortion(run.name, model, in_batches(pixel_values))
        found |= {"rate": point.rate, "error": point.distortion}
        first = slice(CORRELATION_IMAGES)
        found["total_correlation"] = total_correlation(codes.means[first], codes.log_variances[first])
    return found | {"active_units": float(active_units(codes.means).sum())}


def train(args: argparse.Namespace) -> list[Run]:
    """Train the runs of the sweep and return them."""
    runs = []
    for beta in args.betas:
        for seed in args.seeds:
            name = f"beta {beta:g}, seed {seed}"
            folder = Path(args.out) / "runs" / name.replace(", ", "_").replace(" ", "_")
            command = [
                sys.executable, "-m", "ldm_ae.cli", "train", "--config", args.config, "--out", str(folder), "--seed",
                str(seed), "--objective.regularization_weights.kl", str(beta), "--training.max_steps", str(args.steps),
                *args.options,
            ]  # fmt: skip
            print(f"training {name}", file=sys.stderr, flush=True)
            if (status := subprocess.run(command, stdout=sys.stderr, check=False).returncode) != 0:
                raise RunError(f"the training of {name} ended with status {status}; its messages are above")
            runs.append(Run(name, str(folder), beta, seed))
    return runs


def lines_of_scores(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return a table with a row for each model or weight; a cell may be missing."""
    titles = SCORES | UNSUPERVISED
    keys = [key for key in titles if any(key in scores for scores in found.values())]
    width = max(map(len, found))
    lines = [f"{'':<{width}}  " + "  ".join(titles[key] for key in keys)]
    for name, scores in found.items():
        cells = [f"{scores[key]:>{len(titles[key])}.3g}" if key in scores else " " * len(titles[key]) for key in keys]
        lines.append(f"{name:<{width}}  " + "  ".join(cells))
    return lines


def lines_of_sweep(runs: Sequence[Run], found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return mean and standard deviation over the seeds for each weight, the best weight of each seed, and the rank
    correlations."""
    betas, seeds = (sorted({getattr(run, name) for run in runs}) for name in ("beta", "seed"))
    by = {(run.beta, run.seed): found[run.name] for run in runs}
    lines = ["", "mean and standard deviation over the seeds, for each weight"]
    for key, title in SCORES.items():
        cells = []
        for beta in betas:
            values = [by[beta, seed][key] for seed in seeds]
            cells.append(f"{beta:g}: {mean(values):.3f} +- {pstdev(values):.3f}")
        best = ", ".join(f"{max(betas, key=lambda b, s=seed, k=key: by[b, s][k]):g}" for seed in seeds)
        lines.append(f"{title:<22}{'   '.join(cells)}   best weight by seed: {best}")
    if len(runs) > 2:
        lines += ["", "rank correlation over all runs with numbers that need no factors"]
        for key, title in SCORES.items():
            cells = [
                f"{other.partition(',')[0]} {rank_correlation(runs, found, key, name):+.2f}"
                for name, other in UNSUPERVISED.items() if all(name in found[run.name] for run in runs)
            ]  # fmt: skip
            lines.append(f"{title:<22}{'   '.join(cells)}")
    return lines


def rank_correlation(runs: Sequence[Run], found: Mapping[str, Mapping[str, float]], one: str, other: str) -> float:
    """Return Spearman's rank correlation of two numbers over the runs; 0 where one is constant."""
    from scipy.stats import spearmanr

    columns = [[found[run.name][key] for run in runs] for key in (one, other)]
    return 0.0 if min(len(set(column)) for column in columns) == 1 else float(spearmanr(*columns).statistic)


def sweep_figure(runs: Sequence[Run], found: Mapping[str, Mapping[str, float]]) -> Figure:
    """Return the figure of every score over the weight, with a line for each seed."""
    betas = sorted({run.beta for run in runs})
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    panels = figure.subplots(2, 4, sharex=True)
    for axes, (key, title) in zip(panels.flat, SCORES.items(), strict=True):
        for seed in sorted({run.seed for run in runs}):
            own = sorted((run for run in runs if run.seed == seed), key=lambda run: run.beta)
            scores = [found[run.name][key] for run in own]
            axes.plot([run.beta for run in own], scores, "o-", ms=4, label=f"seed {seed}")
        axes.set(title=title, xscale="log", ylim=(-0.02, 1.02))
        axes.set_xticks(betas, labels=[f"{beta:g}" for beta in betas])
        axes.minorticks_off()
    for axes in panels[1]:
        axes.set_xlabel("weight of the KL")
    panels[0, 0].legend(fontsize=8)
    return figure


def jpeg_points(pixel_values: Tensor) -> list[Point]:
    """Return JPEG's points on grey or RGB images, none where Pillow cannot write it."""
    if missing_codec("jpeg") is not None:
        return []
    found = []
    for quality in QUALITIES:
        coded = code_images(pixel_values, "jpeg", quality)
        error = (coded.reconstructions[:, : pixel_values.shape[1]] - pixel_values.cpu()).square().mean()
        found.append(Point(str(quality), float(coded.bits.mean()) / pixel_values[0, 0].numel(), float(error)))
    return found


def measure(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Train if asked to, score, write and print; return the scores by model."""
    sweep = args.config is not None
    if sweep == bool(args.model):
        raise UserError("give models to score, or --config with --betas and --seeds for a sweep")
    if sweep and args.steps < 1:
        raise UserError("--steps must be at least 1")
    source = open_source(args.images)
    if not isinstance(source, SpritesSource):
        raise UserError(f"{args.images} has no known factors; give sprites:N or sprites:FIRST-END")
    factors = np.array([source.factors(index) for index in range(len(source))])
    out = make_folder(args.out)
    runs = train(args) if sweep else [Run(name, name) for name in args.model]
    found = {}
    for run in runs:
        print(f"scoring {run.name}", file=sys.stderr, flush=True)
        found[run.name] = score(run, args.images, factors, args.device, args.size)
    write_json(out / "disentanglement.json", {
        "scores": found, "factors": list(COUNTS._fields), "options": vars(args), "git_commit": git_commit(),
        "versions": package_versions(),
    })  # fmt: skip
    lines = lines_of_scores(found)
    figures = {}
    if sweep:
        lines += lines_of_sweep(runs, found)
        figures["disentanglement.png"] = sweep_figure(runs, found)
    curve = [
        Point(run.name if run.beta is None else f"{run.beta:g}", scores["rate"], scores["error"])
        for run in runs if "rate" in (scores := found[run.name])
    ]  # fmt: skip
    if curve:
        model = load_autoencoder(runs[0].path)
        jpeg = jpeg_points(read_images(model, source, limit=args.jpeg_images, size=args.size).pixel_values)
        figures["rate_distortion.png"] = rate_distortion_figure(
            {"weights of the KL" if sweep else "models": curve} | ({"JPEG, quality": jpeg} if jpeg else {})
        )
    for name, figure in figures.items():
        with writing(out / name) as path:
            figure.savefig(path, dpi=110, format="png")
    print("\n".join(lines))
    print(f"numbers and figures: {out}")
    return found


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description="Score how well latents separate known factors of images.")
    parser.add_argument("model", nargs="*", help="MODEL, as for ldm-ae evaluate")
    parser.add_argument("--out", required=True, help="folder for disentanglement.json, figures and the runs of a sweep")
    parser.add_argument("--images", default="sprites:50000-55000", help="sprites:FIRST-END, images with known factors "
                        "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--size", type=int, help="side of the images in pixels (default: the model's sample size)")
    parser.add_argument("--config", help="recipe of a sweep, such as configs/beta_vae_sprites.yaml")
    parser.add_argument("--betas", type=float, nargs="+", default=[1, 4, 16], help="weights of the KL (default: "
                        "%(default)s)")  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of training (default: "
                        "%(default)s)")  # fmt: skip
    parser.add_argument("--steps", type=int, default=2000, help="steps of each run (default: %(default)s)")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="last: further options of `ldm-ae "
                        "train` for each run of a sweep, such as --training.batch_size 32")  # fmt: skip
    parser.add_argument("--jpeg-images", type=int, default=500, help="images that JPEG codes (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status, as for `ldm-ae`."""

    def command() -> None:
        measure(build_parser().parse_args(argv))

    return exit_status(command, "disentanglement")


if __name__ == "__main__":
    sys.exit(main())
