"""Score how useful latents are for classes, with training and test images.

    python scripts/usefulness.py MODEL [MODEL ...] --train digits:train --test digits:test --out runs/usefulness

For each model it prints, over the posteriors' modes, flattened, or with --pooled averaged to at most 4x4 places:

    probe N       accuracy on test images of logistic regression with N labels, the mean of five choices
    knn           accuracy of 10 nearest neighbours among the test images, five folds
    nmi, ari      agreement of k-means over the test images' latents with their classes
    cas gaussian  classification accuracy score: accuracy on test images of a small network that was trained on images
                  generated for the training labels, by a Gaussian over the latents of each class and the decoder
    cas diffusion the same for images of a small class-conditional diffusion model of the latents and the decoder
    reconstructed the same network trained on reconstructions of the training images
    real          the same network trained on the training images

Pixels are scored beside the models as features of their own. OUT/usefulness.json has all numbers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ldm_ae.core.devices import pick_device
from ldm_ae.core.environment import git_commit, package_versions
from ldm_ae.core.errors import UserError, exit_status
from ldm_ae.data import open_source
from ldm_ae.evaluation.metrics._labelled_latents import pooled
from ldm_ae.io.files import require_new_folder, write_json, writing_folder
from ldm_ae.models import Autoencoder, for_inference, load_autoencoder
from ldm_ae.representation.encoded import Images, in_batches, read_images
from ldm_ae.representation.usefulness import (
    ClassGaussians,
    classification_accuracy_score,
    classifier_accuracy,
    clusterability,
    knn_accuracy,
    label_efficiency,
)
from ldm_ae.training.diffusion import ClassDiffusion

Scores = dict[str, float]


def of_features(train: Tensor, test: Tensor, labels: Tensor, test_labels: Tensor, numbers: Sequence[int]) -> Scores:
    """Return the scores of features (N, D) and (M, D) with labels (N,) and (M,)."""
    curve = label_efficiency(train.numpy(), labels.numpy(), test.numpy(), test_labels.numpy(), numbers=numbers)
    agreement = clusterability(test.numpy(), test_labels.numpy())
    return {
        **{f"probe {point.labels}": point.accuracy for point in curve},
        "knn": knn_accuracy(test.numpy(), test_labels.numpy()), "nmi": agreement.nmi, "ari": agreement.ari,
    }  # fmt: skip


def of_generators(model: Autoencoder, train: Images, test: Images, steps: int, diffusion_steps: int) -> Scores:
    """Return the scores of images that the model generates; no diffusion model without steps."""
    generators: dict[str, Callable[[Tensor], Tensor]] = {
        "gaussian": ClassGaussians(model, train.pixel_values, train.labels)
    }
    if diffusion_steps:
        generators["diffusion"] = ClassDiffusion(model, train.pixel_values, train.labels, steps=diffusion_steps)
    with torch.no_grad():
        parts = in_batches(train.pixel_values)
        reconstructed = torch.cat([model.decode(model.encode(part).mode()).clamp(-1, 1) for part in parts])

    def trained_on(images: Tensor) -> float:
        return classifier_accuracy(images, train.labels, test.pixel_values, test.labels, steps=steps)

    return {
        **{
            f"cas {name}": classification_accuracy_score(
                generate, train.labels, test.pixel_values, test.labels, steps=steps
            )
            for name, generate in generators.items()
        },
        "reconstructed": trained_on(reconstructed),
        "real": trained_on(train.pixel_values),
    }  # fmt: skip


@torch.no_grad()
def features(model: Autoencoder, images: Tensor, *, averaged: bool) -> Tensor:
    """Return scaled latents of images as features (N, D) on the CPU."""
    found = []
    for part in in_batches(images):
        latents = model.scale(model.encode(part).mode()).float()
        found.append((pooled(latents) if averaged else latents.flatten(1)).cpu())
    return torch.cat(found)


def measure(args: argparse.Namespace) -> dict[str, Scores]:
    """Measure, write and print; return the scores by model."""
    require_new_folder(args.out, "the results")
    if args.steps < 1:
        raise UserError("--steps must be at least 1")
    if args.diffusion_steps < 0:
        raise UserError("--diffusion-steps must be at least 0")
    sources = [open_source(location) for location in (args.train, args.test)]
    found: dict[str, Scores] = {}
    for name in args.model:
        model = for_inference(load_autoencoder(name), device=pick_device(args.device))
        train, test = (
            read_images(model, source, limit=limit, size=args.size)
            for source, limit in zip(sources, (args.train_limit, args.test_limit), strict=True)
        )
        for images, location in ((train, args.train), (test, args.test)):
            if int(images.labels.min()) < 0:
                raise UserError(f"{location} has images without a label; give images with a folder for each class")
        if "pixels" not in found:
            flat = (images.pixel_values.flatten(1).cpu() for images in (train, test))
            found["pixels"] = of_features(*flat, train.labels, test.labels, args.labels)
        latents = (features(model, images.pixel_values, averaged=args.pooled) for images in (train, test))
        found[name] = of_features(*latents, train.labels, test.labels, args.labels)
        if not args.no_generator:
            found[name] |= of_generators(model, train, test, args.steps, args.diffusion_steps)
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in found[name].items()), flush=True)
    print("pixels: " + ", ".join(f"{key} {value:.3f}" for key, value in found["pixels"].items()))
    with writing_folder(Path(args.out)) as folder:
        write_json(folder / "usefulness.json", {
            "scores": found, "options": vars(args), "git_commit": git_commit(), "versions": package_versions(),
        })  # fmt: skip
    print(f"numbers: {args.out}")
    return found


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description="Score how useful latents are for classes.")
    parser.add_argument("model", nargs="+", help="MODEL, as for ldm-ae evaluate")
    parser.add_argument("--train", required=True, help="IMAGES with labels, for training")
    parser.add_argument("--test", required=True, help="IMAGES with labels, for testing")
    parser.add_argument("--out", required=True, help="new folder for usefulness.json")
    parser.add_argument("--labels", type=int, nargs="+", default=[100, 1000, 10_000], help="numbers of labels; more "
                        "than there are count as all (default: %(default)s)")  # fmt: skip
    parser.add_argument("--train-limit", type=int, help="use only the first images for training")
    parser.add_argument("--test-limit", type=int, help="use only the first images for testing")
    parser.add_argument("--size", type=int, help="side of the images in pixels (default: the model's sample size)")
    parser.add_argument("--pooled", action="store_true", help="average latents to at most 4x4 places, for latents that "
                        "are too many for a classifier")  # fmt: skip
    parser.add_argument("--no-generator", action="store_true", help="omit cas, reconstructed and real")
    parser.add_argument("--steps", type=int, default=500, help="updates of the classifier (default: %(default)s)")
    parser.add_argument("--diffusion-steps", type=int, default=3000, metavar="N", help="updates of the diffusion model "
                        "of cas diffusion; 0 omits it (default: %(default)s)")  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status, as for `ldm-ae`."""

    def command() -> None:
        measure(build_parser().parse_args(argv))

    return exit_status(command, "usefulness")


if __name__ == "__main__":
    sys.exit(main())
