"""Does `ldm-ae compare` rank models correctly whose order is known?

    python scripts/benchmarks/validation.py --images TEST --train PHOTOS --plain runs/objectives/none/run \
        --eq-vae runs/objectives/EQVAE-scales-from-10-32/run --seed runs/seed1/none/run --out runs/validation

The models are a continuous and a discrete one (by default those that ship with the package), networks that were
trained alike with and without a regularizer, as by scripts/benchmarks/objectives.py, and models that are made here from
the continuous one: with noise in the decoder's weights, with a scale that is wrong by a factor of 8, with activations
that only float32 holds, and with some that it does not hold either. Every expectation is in `EXPECTED`;
docs/VALIDATION.md says what was changed after the first run. A difference between trained networks counts only if it
exceeds that between seeds.

OUT keeps everything; an interrupted run resumes, and what is there is not computed again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from ldm_ae.cli import main as ldm_ae
from ldm_ae.core.environment import git_commit
from ldm_ae.core.errors import UserError, exit_status
from ldm_ae.core.precision import machine_name
from ldm_ae.io.files import write_json
from ldm_ae.models import Autoencoder, load_autoencoder

CONTINUOUS, DISCRETE, PLAIN, EQ_VAE, EQUIVARIANT = "continuous", "discrete", "plain", "EQ-VAE", "ScaleEquivariance"
DAMAGED, OVERFLOWS, NOT_FINITE = "damaged decoder", "overflows in fp16", "not finite"
LARGE, SMALL = "scale 8 times too large", "scale 8 times too small"
DAMAGE, FACTOR = 0.2, 8.0
"""Noise in the decoder's weights, in standard deviations of each weight, and error of a wrong scale."""
GAIN, HOPELESS = 2.0**17, 1e30
"""Gain of the decoder's residual stream: above float16's range, and above float32's."""
SAME = 1e-3
"""Relative difference of scores that count as equal; Fréchet distances of few images are sums of small differences."""

Verdict = Literal["right", "wrong", "undecided", "missing"]


class Expected(NamedTuple):
    """An order that is known before the scores are computed."""

    first: str
    """The model with the better score, for scores without a better direction that with the smaller value."""
    second: str
    scores: tuple[str, ...]
    """Keys of scores."""
    why: str
    equal: bool = False
    """Whether the scores must be equal instead."""
    trained: bool = False
    """Whether both are trained networks, whose scores differ between seeds."""


_DISTANCES = ("stlpips_vgg", "frechet_efficientnet_lite0")
_PIXELS = ("psnr", "ssim")
_EQUIVARIANCE = ("equivariance_error_scale", "equivariance_error_rotation")
OF_RECONSTRUCTION = ("psnr", "ssim", "perceptual", "frechet", "text_error")
OF_LATENTS = ("psnr", "ssim", "equivariance", "latent_spectrum", "noise_tolerance")
EXPECTED = (
    Expected(CONTINUOUS, DISCRETE, _DISTANCES, "trained with a perceptual loss and a discriminator; the other with L1"),
    Expected(CONTINUOUS, DAMAGED, (*_PIXELS, *_DISTANCES, "text_error"),
             "the same model, with noise in the decoder's weights"),
    Expected(CONTINUOUS, DAMAGED, (*_EQUIVARIANCE, "latent_spectrum_slope"), "both have the same encoder", equal=True),
    *(
        Expected(CONTINUOUS, name, (*_PIXELS, *_DISTANCES, *_EQUIVARIANCE), "a scale changes no reconstruction",
                 equal=True)
        for name in (LARGE, SMALL)
    ),
    Expected(CONTINUOUS, OVERFLOWS, (*_PIXELS, *_DISTANCES), "the same function in fp32", equal=True),
    Expected(EQ_VAE, PLAIN, _EQUIVARIANCE, "this is what EQ-VAE trains", trained=True),
    Expected(EQ_VAE, PLAIN, ("latent_spectrum_slope", "flow_loss"), "smoother latents", trained=True),
    Expected(PLAIN, EQ_VAE, (*_PIXELS, "sample_frechet_efficientnet_lite0"),
             "the regularizer costs quality in so short a training", trained=True),
    Expected(EQUIVARIANT, PLAIN, ("equivariance_error_scale", "latent_spectrum_slope", "flow_loss"),
             "this is what the regularizer trains", trained=True),
)  # fmt: skip
"""In fp32. Models that are not given are passed over."""


@torch.no_grad()
def damage(model: Autoencoder) -> None:
    """Add noise to the decoder's weights."""
    generator = torch.Generator().manual_seed(0)
    for weight in model.net.decoder.parameters():
        if weight.ndim > 1:
            weight += DAMAGE * weight.std() * torch.randn(weight.shape, generator=generator)


def rescale(factor: float) -> Callable[[Autoencoder], None]:
    """Return a function that multiplies the scale in a model's configuration."""

    def change(model: Autoencoder) -> None:
        spec = model.latent_spec
        model.set_scaling(scaling_factor=spec.scaling_factor * factor, shift_factor=spec.shift_factor)

    return change


def amplify(gain: float) -> Callable[[Autoencoder], None]:
    """Return a function that multiplies the decoder's residual stream. The last normalization removes the gain, so
    that in float32 the function remains the same, while the stream exceeds float16's range."""

    @torch.no_grad()
    def change(model: Autoencoder) -> None:
        decoder: Any = model.net.decoder
        for name, module in decoder.named_modules():
            if not isinstance(module, nn.Conv2d | nn.Linear) or name == "conv_out":
                continue
            ends = name == "conv_in" or name.endswith((".conv2", ".to_out.0"))  # of a branch
            passes_on = name.endswith(("conv_shortcut", "upsamplers.0.conv"))
            if ends:
                module.weight *= gain
            if (ends or passes_on) and module.bias is not None:
                module.bias *= gain

    return change


MADE: dict[str, Callable[[Autoencoder], None]] = {
    DAMAGED: damage, LARGE: rescale(FACTOR), SMALL: rescale(1 / FACTOR), OVERFLOWS: amplify(GAIN),
    NOT_FINITE: amplify(HOPELESS),
}  # fmt: skip
"""Changes of the continuous model, by the name of the changed one."""


def made_models(options: argparse.Namespace) -> dict[str, str]:
    """Return the continuous model and what `MADE` makes of it, written into OUT unless it is there."""
    found = {CONTINUOUS: options.continuous}
    for name, change in MADE.items():
        folder = options.out / "made" / name.replace(" ", "-")
        if not (folder / "config.json").is_file():
            model = load_autoencoder(options.continuous)
            change(model)
            model.save_pretrained(folder)
        found[name] = str(folder)
    return found


def trained_models(options: argparse.Namespace) -> dict[str, str]:
    """Return the networks that were trained alike, by name."""
    runs = {PLAIN: options.plain, EQ_VAE: options.eq_vae, EQUIVARIANT: options.equivariant}
    found = {name: run for name, run in runs.items() if run is not None}
    return found | {f"{PLAIN}, seed {number}": run for number, run in enumerate(options.seed, 1)}


def compare(
    models: Mapping[str, str], options: argparse.Namespace, part: str, metrics: Sequence[str], *arguments: str
) -> dict[str, Any]:
    """Return metrics.json of `ldm-ae compare` in a part of OUT; status 2, of a model that failed, is expected."""
    folder = options.out / "comparisons" / part
    named = [f"{name}={model}" for name, model in models.items()]
    status = ldm_ae([
        "compare", *named, options.images, "--out", str(folder), "--size", str(options.size),
        "--metrics", *(options.metrics or metrics), *arguments,
    ])  # fmt: skip
    if status not in (0, 2) or not (folder / "metrics.json").is_file():
        raise UserError(f"ldm-ae compare ended with status {status}")
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return found


def seeds_spread(scores: Mapping[str, Mapping[str, float]], key: str) -> float:
    """Return the largest difference of a score between the plain network and its other seeds; 0 without others."""
    values = [found[key] for name, found in scores.items() if name.split(",")[0] == PLAIN and key in found]
    return max(values) - min(values) if values else 0.0


def verdict(expected: Expected, key: str, found: Mapping[str, Any]) -> Verdict:
    """Return whether a score orders two models as expected. It is undecided where the seeds differ as much."""
    scores = {name: model["scores"] for name, model in found["models"].items()}
    if key not in scores[expected.first] or key not in scores[expected.second]:
        return "missing"
    first, second = scores[expected.first][key], scores[expected.second][key]
    if expected.equal:
        return "right" if math.isclose(first, second, rel_tol=SAME, abs_tol=1e-6) else "wrong"
    if expected.trained and abs(first - second) <= seeds_spread(scores, key):
        return "undecided"
    higher = found["score_infos"][key]["direction"] == "higher"
    return "right" if first != second and (first > second) == higher else "wrong"


def rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return a row for each expected order of two models that were compared, and each of its scores."""
    lines = []
    for expected in EXPECTED:
        if not {expected.first, expected.second} <= found["models"].keys():
            continue
        sign = "=" if expected.equal else "before"
        for key in expected.scores:
            values = [found["models"][name]["scores"].get(key) for name in (expected.first, expected.second)]
            shown = ["–" if value is None else f"{value:.4g}" for value in values]
            order = f"{expected.first} {sign} {expected.second}"
            lines.append((order, f"`{key}`", *shown, verdict(expected, key, found), expected.why))
    return lines


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *lines))


def warning_rows(found: Mapping[str, Any], part: str) -> list[tuple[str, str, str]]:
    """Return the warnings on models, and the reasons of those that failed."""
    lines = [(part, name, text["text"]) for name, model in found["models"].items() for text in model["warnings"]]
    return lines + [(part, name, f"failed: {reason}") for name, reason in found["failed"].items()]


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--images", required=True, help="IMAGES to score on")
    parser.add_argument("--train", help="IMAGES that the diffusion networks learn (default: a part of --images)")
    parser.add_argument("--continuous", default="kl-f8c4-small", help="a model (default: %(default)s)")
    parser.add_argument("--discrete", default="vq-f8-small", help="another model (default: %(default)s)")
    parser.add_argument("--plain", help="run without a regularizer")
    parser.add_argument("--eq-vae", help="the same with EQVAE")
    parser.add_argument("--equivariant", help="the same with ScaleEquivariance")
    parser.add_argument("--seed", action="append", default=[], help="the plain run with another seed (repeatable)")
    parser.add_argument("--size", type=int, default=64, help="side of the central crop (default: %(default)s)")
    parser.add_argument("--metrics", nargs="+", help="as for ldm-ae compare (default: those of the expectations)")
    parser.add_argument("--diffusion", type=int, default=600, help="steps; 0 for no such score (default: %(default)s)")
    parser.add_argument("--made-images", type=int, default=16, help="images for changed models (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the models and the results")
    return parser.parse_args()


def main() -> None:
    """Run the validation from the command line."""
    options = arguments()
    made, trained = made_models(options), trained_models(options)
    diffusion = ["--diffusion", str(options.diffusion)] if options.diffusion else []
    if options.diffusion and options.train is not None:
        diffusion += ["--diffusion-images", options.train]
    half = {name: made[name] for name in (CONTINUOUS, OVERFLOWS, NOT_FINITE)}
    shipped = {CONTINUOUS: options.continuous, DISCRETE: options.discrete}
    few = ["--limit", str(options.made_images)]
    everything = [*OF_RECONSTRUCTION, *OF_LATENTS]
    found = {
        "fp16": compare(half, options, "fp16", OF_LATENTS, "--precision", "fp16", *few),
        "made": compare(made, options, "made", everything, *few),
    }
    if trained:
        found["trained"] = compare(trained, options, "trained", OF_LATENTS, *diffusion)
    found["shipped"] = compare(shipped, options, "shipped", ("psnr", "perceptual", "frechet"))
    orders = [row for name in found if name != "fp16" for row in rows(found[name])]
    warnings = [row for name, part in found.items() for row in warning_rows(part, name)]
    write_json(options.out / "validation.json", {"orders": orders, "warnings": warnings})
    counts = ", ".join(f"{name} {part['protocol']['images']['count']} images" for name, part in found.items())
    print(
        f"{Path(options.images).name}, central {options.size}² crops ({counts}), {options.diffusion} steps of "
        f"diffusion, torch {torch.__version__}, {machine_name(torch.device('cpu'))}, commit {git_commit()}\n"
    )
    print(table(("expected order", "score", "first", "second", "result", "because"), orders), "\n")
    print(table(("comparison", "model", "warning"), warnings))


if __name__ == "__main__":
    sys.exit(exit_status(main, "validation"))
