"""Train an autoencoder and a diffusion transformer (SiT) together, as REPA-E does (arXiv 2504.10483).

    python scripts/train_end_to_end.py --images photos:train --out runs/end_to_end
    accelerate launch scripts/train_end_to_end.py ...

    DiTPipeline.from_pretrained("DIR/pipeline")([1000] * 4, guidance_scale=1.0)       # 1000: no class

DIR is an ordinary run of `ldm-ae train`, whose `model/` every command takes; its scale is the normalization that the
SiT was trained with. Rerun the same command to resume after any interruption; Ctrl-C saves first.

The losses, and which of them trains which network, are in `ldm_ae/regularizers/end_to_end.py`; the autoencoder's own
objective is the recipe's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm_ae.commands.interface import Parser
from ldm_ae.core.errors import UserError, exit_status

RECIPE = "end_to_end"
OPTIONS = {
    "steps": ("training.max_steps", "N", "total number of steps"),
    "batch-size": ("training.batch_size", "N", "images per step and process"),
    "resolution": ("data.resolution", "N", "side of the square crops in pixels"),
    "learning-rate": ("optimizer.learning_rate", "X", "highest learning rate of both networks"),
    "width": ("regularizer.init_args.width", "N", "channels of a token of the SiT, a multiple of 32"),
    "depth": ("regularizer.init_args.depth", "N", "blocks of the SiT"),
    "aligned-block": ("regularizer.init_args.aligned_block", "N", "block whose output is aligned with the features"),
    "seed": ("seed", "N", "seed of weights, order, noise and times"),
}
"""Each option, the key of the configuration that it sets, its value, and its help."""
IMAGE_SIZE = 224
"""Side in pixels of the images that a network of `--features` sees, as in REPA."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the options of this script; all others are those of `ldm-ae train`."""
    parser = Parser(
        description="Train an autoencoder and a diffusion transformer together. Rerun the same command to resume.",
        usage="%(prog)s --images IMAGES --out DIR [options] [--KEY VALUE ...]",
        epilog="Every key of the recipe is an option too, as for `ldm-ae train`: --training.checkpoint_every 100, "
        "--objective.regularization_weights.latent_alignment 1.5; `ldm-ae train --help` lists them.",
        allow_abbrev=False,
    )
    parser.add_argument("--images", metavar="IMAGES", help="training images: a folder, tars, hf:NAME, or photos:train")
    parser.add_argument("--out", required=True, metavar="DIR", help="run directory; its pipeline/ is the result")
    parser.add_argument(
        "--config", action="append", metavar="RECIPE", help=f"recipe of the autoencoder and the SiT ({RECIPE})"
    )
    parser.add_argument(
        "--autoencoder", metavar="MODEL", help="model to start from in place of a new one: a run or diffusers folder"
    )
    for name, (key, metavar, text) in OPTIONS.items():
        parser.add_argument(f"--{name}", metavar=metavar, dest=key, help=f"{text} (the recipe's)")
    parser.add_argument(
        "--features",
        metavar="NAME",
        help="network whose last map the SiT is aligned with, such as dinov2 (the recipe's)",
    )
    parser.add_argument(
        "--features-weights", metavar="WEIGHTS", help="its weights: a folder, a name on the hub, or random (its own)"
    )
    parser.add_argument(
        "--sample", action="store_true", help="only write pipeline/ and samples/ of the newest checkpoint"
    )
    return parser


def train_arguments(args: argparse.Namespace, others: Sequence[str]) -> list[str]:
    """Return the arguments of `ldm-ae train`."""
    given = vars(args)
    pairs = [("config", config) for config in args.config or [RECIPE]]
    pairs += [("out", args.out), ("data.train", args.images), ("model.init_args.pretrained", args.autoencoder)]
    pairs += [(key, given[key]) for key, _, _ in OPTIONS.values()]
    if args.features is not None:
        chosen: dict[str, Any] = {"layers": [-1], "image_size": IMAGE_SIZE}
        if args.features_weights is not None:
            chosen["weights"] = None if args.features_weights == "random" else args.features_weights
        features = json.dumps({"class_path": args.features, "init_args": chosen})
        pairs.append(("regularizer.init_args.features", features))
    return [word for key, value in pairs if value is not None for word in (f"--{key}", value)] + list(others)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status, as for `ldm-ae`."""

    def command() -> None:
        args, others = build_parser().parse_known_args(argv)
        if args.images is None and not args.sample:
            raise UserError("--images is missing; give the training images, such as photos:train")
        if args.features_weights is not None and args.features is None:
            raise UserError("--features-weights has no effect without --features; give both")
        from ldm_ae.training.end_to_end import train_end_to_end, write_pipeline  # takes seconds

        run = Path(args.out) if args.sample else train_end_to_end(train_arguments(args, others))
        if os.environ.get("RANK", "0") == "0":
            pipeline, samples = write_pipeline(run)
            print(f"samples: {samples}")
            print(f"pipeline: {pipeline}")

    return exit_status(command, "train_end_to_end")


if __name__ == "__main__":
    sys.exit(main())
