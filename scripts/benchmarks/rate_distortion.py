"""Rate against distortion: a sweep of codebook sizes or KL weights, beside JPEG, WebP and AVIF at their qualities.

    python scripts/benchmarks/rate_distortion.py --train PHOTOS --test OTHER_PHOTOS --out runs/rate \\
        --config configs/vq_quickstart.yaml --steps 600 \\
        --sweep model.init_args.quantizer.init_args.codebook_size=64,256,1024

Each value of the sweep is a separate run in OUT; an existing run is resumed. `--model` adds further models.
OUT/rate_distortion.json has the numbers, OUT/rate_distortion.png the plot.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from short_runs import RATES, Protocol, protocol_arguments, score, score_codec, train_and_score

from ldm_ae.core.environment import git_commit
from ldm_ae.core.errors import UserError, exit_status
from ldm_ae.evaluation.codecs import CODECS, missing_codec
from ldm_ae.io.files import make_folder, write_json, writing

QUALITIES = (2, 5, 10, 20, 40, 60, 80, 90)
LABELS = {
    "kl_bits_per_pixel": "KL to N(0, 1)",
    "bits_per_pixel": "fixed length",
    "entropy_bits_per_pixel": "entropy of the codes",
}


class Point(NamedTuple):
    """One model, or one quality of a codec."""

    curve: str
    name: str
    scores: dict[str, float]


def points(options: argparse.Namespace, overrides: list[str], protocol: Protocol) -> Iterator[Point]:
    """Yield the points of the codecs, the given models, and the models of the sweep, which are trained."""
    for codec in CODECS:
        if (missing := missing_codec(codec)) is not None:
            print(missing, file=sys.stderr)
            continue
        for quality in options.qualities:
            yield Point(codec, str(quality), score_codec(codec, quality, protocol))
    for model in options.model:
        yield Point(Path(model).name, "", score(Path(model), protocol))
    if options.sweep is None:
        return
    if options.config is None or options.train is None or options.steps is None:
        raise UserError("--sweep needs --config, --train and --steps")
    key, equals, values = options.sweep.partition("=")
    if not equals or not values:
        raise UserError(f"--sweep is '{options.sweep}'; it must be KEY=VALUE,VALUE,...")
    steps = str(options.steps)
    arguments = ["--config", options.config, "--data.train", options.train, *overrides, "--training.max_steps", steps]
    for value in values.split(","):
        folder = options.out / f"{key.rpartition('.')[2]}={value}"
        scores = train_and_score(folder, [*arguments, f"--{key}", value], protocol)
        yield Point(Path(options.config).stem, value, scores)


def draw(found: list[Point], perceptual: str, path: Path) -> None:
    """Plot PSNR, SSIM and perceptual distance over bits per pixel; one line for each curve and way of counting bits."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    curves: dict[tuple[str, str], list[Point]] = {}
    for point in found:
        for rate in RATES:
            if rate in point.scores:
                curves.setdefault((point.curve, rate), []).append(point)
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    for axis, score_name in zip(axes, ("psnr", "ssim", perceptual), strict=True):
        for (curve, rate), members in curves.items():
            ordered = sorted(members, key=lambda point, rate=rate: point.scores[rate])  # type: ignore[misc]
            x, y = ([point.scores[name] for point in ordered] for name in (rate, score_name))
            codec = curve in CODECS
            label = curve if codec else f"{curve}, {LABELS[rate]}"
            axis.plot(x, y, "--" if codec else "o-", label=label, color="gray" if curve == "jpeg" else None)
            for point, px, py in zip(ordered, x, y, strict=True):
                axis.annotate(point.name, (px, py), fontsize=7, xytext=(3, 3), textcoords="offset points")
        axis.set(xscale="log", xlabel="bits per pixel", ylabel=score_name + (" (dB)" if score_name == "psnr" else ""))
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(fontsize=8)
    with writing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--config", help="recipe whose key is swept")
    parser.add_argument("--sweep", metavar="KEY=V,V,...", help="configuration key and its values")
    parser.add_argument("--steps", type=int, help="training steps of each run")
    parser.add_argument("--train", help="IMAGES to train on")
    parser.add_argument("--model", action="append", default=[], help="trained model to score as well (repeatable)")
    parser.add_argument("--qualities", type=int, nargs="*", default=QUALITIES, help="of JPEG, WebP and AVIF")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, results and plot")
    protocol_arguments(parser)
    options, overrides = parser.parse_known_args()
    protocol = Protocol(options.test, options.size, options.perceptual, options.limit)
    make_folder(options.out)
    found = []
    for point in points(options, overrides, protocol):
        found.append(point)
        rates = ", ".join(f"{point.scores[rate]:.3f} {rate}" for rate in RATES if rate in point.scores)
        print(f"{point.curve} {point.name}: {rates}, {point.scores['psnr']:.2f} dB", flush=True)
    report = {"protocol": str(protocol), "commit": git_commit(), "points": [point._asdict() for point in found]}
    write_json(options.out / "rate_distortion.json", report)
    draw(found, options.perceptual, options.out / "rate_distortion.png")
    print(f"results and plot: {options.out}")


if __name__ == "__main__":
    sys.exit(exit_status(main, "rate_distortion"))
