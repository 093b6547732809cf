"""Every regularizer and discriminator in the same small autoencoder, trained equally long, and what it is good for.

    python scripts/benchmarks/objectives.py --train PHOTOS --test OTHER_PHOTOS --out runs/objectives

Autoencoders have the network of configs/quickstart.yaml and differ by one part of the objective. They are scored on
TEST at the training's size, and as first stages, by the diffusion score of `ldm-ae compare`: the same small network
learns the latents of TRAIN, and is scored by its loss on TEST's latents and by the Fréchet distance of its samples to
TEST over EfficientNet-Lite0. OUT keeps everything; what is there is not computed again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from short_runs import Protocol, protocol_arguments, train_and_score

from ldm_ae.core.environment import git_commit
from ldm_ae.core.errors import exit_status
from ldm_ae.core.precision import SPEED_VARIABLE, bfloat16_speed, machine_name
from ldm_ae.core.resources import recipe
from ldm_ae.data import ImageTransform, Source, Subset, open_source
from ldm_ae.evaluation.metrics.features import EfficientNetLite0Features
from ldm_ae.io.files import make_folder, write_json, writing
from ldm_ae.models import load_autoencoder
from ldm_ae.training.diffusion import DiffusionScoreConfig, diffusion_score, split_images

METRICS = ("psnr", "perceptual", "equivariance", "latent_spectrum", "noise_tolerance")

_FEATURES = {"class_path": "ldm_ae.features.EfficientNetLite0"}
# At 64 pixels, smaller images than 20 pixels have no perceptual distance.
REGULARIZERS: dict[str, tuple[str | None, dict[str, Any], dict[str, float]]] = {
    "none": (None, {}, {"kl": 1e-6}),
    "none, KL 1e-3": (None, {}, {"kl": 1e-3}),
    "EQVAE, scales from 10-32": ("EQVAE", {"smallest_scale": 10 / 32}, {"kl": 1e-6}),
    "ScaleEquivariance, factor 2": ("ScaleEquivariance", {"factors": [2]}, {"kl": 1e-6}),
    "GaussianNoise": ("GaussianNoise", {}, {"kl": 1e-6}),
    "ChannelPrefixMask": ("ChannelPrefixMask", {}, {"kl": 1e-6}),
    "FreeBits": ("FreeBits", {}, {"free_bits_kl": 1e-3}),
    "NormalizedLatents": ("NormalizedLatents", {}, {"kl": 1e-6}),
    "Alignment": ("Alignment", {"features": _FEATURES}, {"kl": 1e-6, "alignment": 0.1}),
}
"""Class, arguments, and weights of its and the posterior's terms, by name. All are trained without a discriminator."""

DISCRIMINATORS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "PatchDiscriminator": ("PatchDiscriminator", {"n_layers": 2, "ndf": 32, "norm": "group"}, []),
    "PatchDiscriminator, DiffAug, LeCam, 8-bit": (
        "PatchDiscriminator", {"n_layers": 2, "ndf": 32, "norm": "group"}, ["DiffAug", "LeCam", "EightBit"],
    ),
    "SpectralPatchDiscriminator": ("SpectralPatchDiscriminator", {"n_layers": 3, "ndf": 32}, []),
    "MultiScaleDiscriminator": ("MultiScaleDiscriminator", {"scales": 2, "n_layers": 2, "ndf": 32}, []),
    "StyleGAN2Discriminator": ("StyleGAN2Discriminator", {"image_size": 64}, []),
    "ProjectedDiscriminator": ("ProjectedDiscriminator", {}, []),
}  # fmt: skip
"""Class, arguments and aids, by name. DINO's needs weights from a hub."""

COLUMNS = {
    "psnr": ".2f",
    "stlpips_alex": ".3f",
    "equivariance_error_scale": ".3f",
    "equivariance_error_rotation": ".3f",
    "psnr_noise_0.3": ".2f",
    "latent_spectrum_slope": ".2f",
    "latent_high_frequencies": ".3f",
    "flow_loss": ".3f",
    "sample_frechet_efficientnet_lite0": ".1f",
    "step_time": ".2f",
}


def variants() -> list[str]:
    """Return the names of all variants; the first is the reference of times."""
    return [*REGULARIZERS, *DISCRIMINATORS]


def write_recipe(name: str, path: Path) -> None:
    """Write configs/quickstart.yaml with the named part of the objective."""
    content = yaml.safe_load(recipe("quickstart.yaml").read_text(encoding="utf-8"))
    del content["data"]["resize"]  # whole photos, with which samples can be compared
    content["objective"]["perceptual"]["init_args"]["net"] = "vgg"  # AlexNet's is the score
    if name in REGULARIZERS:
        regularizer, init_args, weights = REGULARIZERS[name]
        del content["discriminator"], content["discriminator_optimizer"]
        if regularizer is not None:
            content["regularizer"] = {"class_path": f"ldm_ae.regularizers.{regularizer}", "init_args": init_args}
        content["objective"]["regularization_weights"] = weights
    else:
        kind, init_args, aids = DISCRIMINATORS[name]
        content["discriminator"] = {"class_path": f"ldm_ae.discriminators.{kind}", "init_args": init_args}
        if aids:
            content["discriminator_aids"] = [{"class_path": f"ldm_ae.discriminators.{aid}"} for aid in aids]
    with writing(path) as temporary:
        temporary.write_text(yaml.safe_dump(content), encoding="utf-8")


def arguments_of(options: argparse.Namespace, path: Path) -> list[str]:
    """Return the arguments of `ldm-ae train` for a recipe, with the discriminator from 60 % of the steps on."""
    steps, start = str(options.steps), int(options.steps * 0.6)
    return [
        "--config", str(path), "--data.train", options.train, "--data.validation_images", "0",
        "--data.resolution", str(options.size), "--training.max_steps", steps, "--training.checkpoint_every", steps,
        "--training.sample_every", steps, "--training.log_every", "10",
        "--objective.discriminator_start", str(start),
    ]  # fmt: skip


def seconds_an_image(run: Path) -> float:
    """Return the median time of an image over the last third of a training, in which a discriminator takes part."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    speeds = [line["images_per_second"] for line in lines if line["kind"] == "train"]
    return 1 / median(speeds[-max(len(speeds) // 3, 1) :])


def diffusion_scores(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Return the diffusion score of the run in `folder`, trained on TRAIN and compared with TEST."""
    transform = ImageTransform(size=options.size)
    images = split_images(
        open_source(options.train), transform, name=f"{options.train} and {options.test}",
        held_out=first_images(open_source(options.test), options.limit),
    )  # fmt: skip
    budget = DiffusionScoreConfig(steps=options.diffusion_steps, samples=options.samples)
    found = diffusion_score(
        load_autoencoder(folder / "run"), folder / "diffusion", images=images, config=budget,
        features=[EfficientNetLite0Features()],
    )  # fmt: skip
    return found.scores


def first_images(source: Source, limit: int | None) -> Source:
    """Return the first images of a source, which are those of the other scores."""
    return source if limit is None else Subset(source, range(min(limit, len(source))))


def measure(name: str, options: argparse.Namespace, protocol: Protocol, overrides: list[str]) -> dict[str, float]:
    """Return all scores of a variant, computed unless they are in its folder."""
    folder = make_folder(options.out / name.replace(", ", "-").replace(" ", "-"))
    path = folder / "scores.json"
    if path.is_file():
        found: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
        return found
    write_recipe(name, folder / "recipe.yaml")
    found = train_and_score(folder / "run", [*arguments_of(options, folder / "recipe.yaml"), *overrides], protocol)
    found |= diffusion_scores(folder, options) | {"seconds_an_image": seconds_an_image(folder / "run")}
    write_json(path, found)
    return found


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=600, help="steps of each autoencoder (default: %(default)s)")
    parser.add_argument(
        "--diffusion-steps", type=int, default=600, help="steps of each diffusion model (default: %(default)s)"
    )
    parser.add_argument("--samples", type=int, default=256, help="samples of each (default: %(default)s)")
    parser.add_argument("--train", required=True, help="IMAGES to train on")
    parser.add_argument("--only", choices=variants(), action="append", help="measure only this variant (repeatable)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs and the results")
    protocol_arguments(parser)
    parser.set_defaults(size=64)
    options, overrides = parser.parse_known_args()
    # One measurement for all runs, so that the precision is the same on a busy machine.
    os.environ.setdefault(SPEED_VARIABLE, repr(bfloat16_speed(torch.device("cpu"))))
    protocol = Protocol(options.test, options.size, options.perceptual, options.limit, resize=None, metrics=METRICS)
    found = {name: measure(name, options, protocol, overrides) for name in options.only or variants()}
    reference = found.get(variants()[0])
    for scores in found.values():
        if reference is not None:
            scores["step_time"] = scores["seconds_an_image"] / reference["seconds_an_image"]
    write_json(options.out / "objectives.json", found)
    print(
        f"{options.steps} steps on {options.train}, {options.diffusion_steps} steps of diffusion, {protocol}, "
        f"torch {torch.__version__}, {machine_name(torch.device('cpu'))}, commit {git_commit()}\n"
    )
    print(f"| objective | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for name, scores in found.items():
        cells = (format(scores[key], spec) if key in scores else "" for key, spec in COLUMNS.items())
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    sys.exit(exit_status(main, "objectives"))
