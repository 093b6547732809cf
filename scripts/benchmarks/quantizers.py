"""Every quantizer in the same small autoencoder, trained equally long: codes in use, rate and PSNR.

    python scripts/benchmarks/quantizers.py --steps 400 --train photos:train --test photos:heldout --out runs/quantizers

Each has about 512 codes (2 levels of 512 for the residual one) and L1 loss alone; everything else is as in
configs/vq_quickstart.yaml. OUT keeps the runs; an existing run is resumed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from short_runs import Protocol, protocol_arguments, train_and_score

from ldm_ae.core.environment import git_commit
from ldm_ae.core.errors import exit_status
from ldm_ae.core.resources import recipe
from ldm_ae.io.files import make_folder, write_json, writing

TABLE = {"codebook_size": 512, "codebook_dim": 4}
CARE = {"kmeans_iterations": 10, "restart_below": 0.1, "usage_decay": 0.9}
BITS = 9
CODES = {"codebook": 1.0, "commitment": 1.0}
COMMITMENT = {"commitment": 1.0}

QUANTIZERS: dict[str, tuple[str, dict[str, Any], dict[str, float]]] = {
    "VQ": ("VQ", TABLE, CODES),
    "VQ, k-means and restarts": ("VQ", {**TABLE, "care": CARE}, CODES),
    "EMAVQ": ("EMAVQ", {**TABLE, "decay": 0.9}, COMMITMENT),
    "EMAVQ, k-means and restarts": ("EMAVQ", {**TABLE, "decay": 0.9, "care": CARE}, COMMITMENT),
    "CosineVQ": ("CosineVQ", TABLE, CODES),
    "SimVQ": ("SimVQ", TABLE, CODES),
    "IBQ": ("IBQ", TABLE, {**CODES, "quantization": 1.0}),
    "FSQ": ("FSQ", {"levels": [8, 8, 8]}, {}),
    # Entropies count positions; the mean divides them by D h w, hence D times the published weight of 0.1.
    "LFQ": ("LFQ", {"codebook_dim": BITS}, {"entropy": 0.1 * BITS, **COMMITMENT}),
    "BSQ": ("BSQ", {"codebook_dim": BITS}, {"entropy": 0.1 * BITS}),
    "GumbelVQ": ("GumbelVQ", {**TABLE, "temperature_steps": 400}, {"kl": 5e-4 * TABLE["codebook_dim"]}),
    "ResidualVQ of 2 EMAVQ": (
        "ResidualVQ",
        {"levels": 2, "quantizer": {"class_path": "ldm_ae.quantizers.EMAVQ",
                                    "init_args": {**TABLE, "decay": 0.9, "care": CARE}}},
        COMMITMENT,
    ),
}  # fmt: skip
"""Class, arguments and weights of the regularization, by name."""
COLUMNS = {
    "psnr": ".2f",
    "bits_per_pixel": ".3f",
    "entropy_bits_per_pixel": ".3f",
    "codebook_usage": ".0%",
    "codebook_perplexity": ".0f",
}


def write_recipe(name: str, path: Path) -> None:
    """Write configs/vq_quickstart.yaml with that quantizer, and with L1 as the only other loss."""
    kind, init_args, weights = QUANTIZERS[name]
    content = yaml.safe_load(recipe("vq_quickstart.yaml").read_text(encoding="utf-8"))
    content["model"]["init_args"]["quantizer"] = {"class_path": f"ldm_ae.quantizers.{kind}", "init_args": init_args}
    content["objective"] = {"reduction": "mean", "regularization_weights": weights}
    del content["discriminator"], content["discriminator_optimizer"]
    with writing(path) as temporary:
        temporary.write_text(yaml.safe_dump(content), encoding="utf-8")


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=400, help="training steps of each run (default: %(default)s)")
    parser.add_argument("--train", default="photos:train", help="IMAGES to train on (default: %(default)s)")
    parser.add_argument("--only", choices=QUANTIZERS, action="append", help="measure only this quantizer (repeatable)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs and the results")
    protocol_arguments(parser)
    options, overrides = parser.parse_known_args()
    protocol = Protocol(options.test, options.size, options.perceptual, options.limit)
    make_folder(options.out)
    steps = str(options.steps)
    found = {}
    for name in options.only or QUANTIZERS:
        folder = make_folder(options.out / name.replace(", ", "-").replace(" ", "-"))
        write_recipe(name, folder / "recipe.yaml")
        arguments = ["--config", str(folder / "recipe.yaml"), "--data.train", options.train,
                     "--data.validation_images", "0", "--training.max_steps", steps,
                     "--training.checkpoint_every", steps, "--training.sample_every", steps, *overrides]  # fmt: skip
        found[name] = train_and_score(folder / "run", arguments, protocol)
    write_json(options.out / "quantizers.json", found)
    print(f"{steps} steps on {options.train}, {protocol}, torch {torch.__version__}, commit {git_commit()}\n")
    print(f"| quantizer | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for name, scores in found.items():
        print(f"| {name} | {' | '.join(format(scores[key], spec) for key, spec in COLUMNS.items())} |")


if __name__ == "__main__":
    sys.exit(exit_status(main, "quantizers"))
