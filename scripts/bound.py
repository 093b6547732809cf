"""Measure how tight a variational autoencoder's bound is, and draw the posterior of an image beside the encoder's.

    python scripts/bound.py MODEL IMAGES --out runs/bound

MODEL needs a likelihood and Gaussian posteriors (`objective.reconstruction: bernoulli`, `gaussian`,
`logistic`). For the first images it prints, in nats for each image and bits per dimension, with the standard
error over the images:

    elbo          evidence lower bound
    iwae K        importance-weighted bound with K draws
    ais           annealed importance sampling with Hamiltonian steps, the reference
    best gaussian bound of the best diagonal Gaussian for each image

and the gap between the reference (the larger one of ais and the largest iwae, for each image) and the ELBO, split into
approximation (no diagonal Gaussian is the posterior) and amortization (one encoder serves all images).

OUT/bound.json has all numbers, OUT/posterior.png draws of p(z|x) of one image and the encoder's Gaussian.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ldm_ae.core.devices import pick_device
from ldm_ae.core.environment import git_commit, package_versions
from ldm_ae.core.errors import UserError, exit_status
from ldm_ae.core.terminal import ProgressDisplay
from ldm_ae.data import open_source
from ldm_ae.io.files import require_new_folder, write_json, writing_folder
from ldm_ae.models import for_inference, load_autoencoder
from ldm_ae.representation.bound import (
    ais,
    bits_per_dimension,
    elbo,
    gaps,
    iwae,
    posterior_draws,
    posterior_figure,
)
from ldm_ae.representation.bound.densities import gaussian_posterior, has_levels, require_bound
from ldm_ae.representation.encoded import read_images


def measure(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure, write and print; return the table by row."""
    require_new_folder(args.out, "the results")
    counts = ("images", "elbo_samples", "ais_steps", "ais_chains", "optimizer_steps", "draws", "warmup")
    for name in counts:
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    source = open_source(args.data)
    model = for_inference(load_autoencoder(args.model), device=pick_device(args.device))
    require_bound(model)
    images = read_images(model, source, limit=args.images).pixel_values
    if not 0 <= args.posterior_of < len(images):
        raise UserError(f"--posterior-of is {args.posterior_of}; it must be from 0 to {len(images) - 1}")
    found: dict[str, Tensor] = {}
    with _stage("ELBO"):
        found["elbo"] = elbo(model, images, samples=args.elbo_samples).nats
    for k in args.k:
        with _stage(f"importance-weighted bound of {k} draws"):
            found[f"iwae {k}"] = iwae(model, images, k=k)
    with _stage("annealed importance sampling"):
        annealed = ais(model, images, steps=args.ais_steps, chains=args.ais_chains, schedule=args.schedule)
    found["ais"] = annealed.nats
    reference = torch.maximum(found["ais"], found[f"iwae {max(args.k)}"])
    with _stage("best Gaussian of each image"):
        split = gaps(model, images, reference, steps=args.optimizer_steps)
    found["best gaussian"] = split.optimal_elbo
    image = images[args.posterior_of][None]
    with _stage("draws of the posterior of one image"):
        draws = posterior_draws(model, image, draws=args.draws, warmup=args.warmup)
    found |= {"approximation gap": split.approximation, "amortization gap": split.amortization, "gap": split.total}
    rows = {name: _row(values) for name, values in found.items()}
    if has_levels(model):
        for name, values in found.items():
            if not name.endswith("gap"):
                rows[name]["bits_per_dimension"] = float(bits_per_dimension(model, values, images).mean())
    checks = {
        "ais_acceptance": annealed.acceptance,
        "ais_effective_chains": float(annealed.effective_chains.median()),
        "posterior_acceptance": draws.acceptance,
        "posterior_r_hat": float(draws.r_hat.max()),
    }
    with writing_folder(Path(args.out)) as folder:
        figure = posterior_figure(draws.latents, gaussian_posterior(model, image), args.latents)
        figure.savefig(folder / "posterior.png", dpi=120)
        per_image = {name: values.tolist() for name, values in found.items()}
        write_json(folder / "bound.json", {
            "rows": rows, "checks": checks, "images": per_image, "options": vars(args), "git_commit": git_commit(),
            "versions": package_versions(),
        })  # fmt: skip
    for line in table(rows):
        print(line)
    print(
        f"checks: AIS accepts {checks['ais_acceptance']:.0%}, {checks['ais_effective_chains']:.1f} of "
        f"{args.ais_chains} chains effective; posterior: accepts {checks['posterior_acceptance']:.0%}, largest r-hat "
        f"{checks['posterior_r_hat']:.3f}"
    )
    print(f"numbers and picture: {args.out}")
    return rows


def _stage(text: str) -> ProgressDisplay:
    """Show what is computed: the stages take from a second to minutes each, so that no remaining time can be told."""
    return ProgressDisplay(text, 1, unit="stages", images_per_unit=None)


def _row(values: Tensor) -> dict[str, float]:
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else 0.0
    return {"nats": float(values.mean()), "standard_error": error}


def table(rows: dict[str, dict[str, float]]) -> list[str]:
    """Return the lines of the table for the terminal."""
    lines = [f"{'':<20}{'nats':>10}{'+-':>8}{'bits/dim':>10}"]
    for name, row in rows.items():
        bits = f"{row['bits_per_dimension']:>10.4f}" if "bits_per_dimension" in row else ""
        lines.append(f"{name:<20}{row['nats']:>10.2f}{row['standard_error']:>8.2f}{bits}")
    return lines


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description="Measure how tight a variational autoencoder's bound is.")
    parser.add_argument("model", help="MODEL, as for ldm-ae evaluate")
    parser.add_argument("data", metavar="images", help="IMAGES, as for ldm-ae evaluate")
    parser.add_argument("--out", required=True, help="new folder for bound.json and posterior.png")
    parser.add_argument("--images", type=int, default=16, help="use the first IMAGES (default: %(default)s)")
    parser.add_argument("--elbo-samples", type=int, default=200, help="draws of the ELBO (default: %(default)s)")
    parser.add_argument("--k", type=int, nargs="+", default=[10, 100, 1000, 5000], help="draws of the "
                        "importance-weighted bounds (default: %(default)s)")  # fmt: skip
    parser.add_argument("--ais-steps", type=int, default=500, help="densities of annealing (default: %(default)s)")
    parser.add_argument("--ais-chains", type=int, default=16, help="chains of each image (default: %(default)s)")
    parser.add_argument("--schedule", choices=("linear", "sigmoid"), default="sigmoid")
    parser.add_argument("--optimizer-steps", type=int, default=500, help="steps to the best Gaussian of each image "
                        "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--posterior-of", type=int, default=0, help="image of the picture, from 0 (default: 0)")
    parser.add_argument("--draws", type=int, default=1000, help="draws of its posterior by each of 16 chains "
                        "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--warmup", type=int, default=300, help="transitions of each chain before "
                        "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--latents", type=int, nargs=2, help="the two latents of the picture; by default the draws' "
                        "principal directions")  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status, as for `ldm-ae`."""

    def command() -> None:
        measure(build_parser().parse_args(argv))

    return exit_status(command, "bound")


if __name__ == "__main__":
    sys.exit(main())
