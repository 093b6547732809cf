"""What a configuration reaches in so many steps: the regression test of training quality.

To compare two commits, or two settings, run the same line for both. The order of the images, their crops and the
initial weights are functions of the seed; two runs of one commit differ only by rounding.

    python scripts/benchmarks/fixed_budget.py --config configs/quickstart.yaml --steps 300 \\
        --train PHOTOS --test OTHER_PHOTOS [--KEY VALUE, as of ldm-ae train]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from short_runs import Protocol, protocol_arguments, train_and_score

from ldm_ae.core.environment import git_commit
from ldm_ae.core.errors import exit_status


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--config", required=True, help="recipe (YAML file)")
    parser.add_argument("--steps", type=int, required=True, help="number of training steps")
    parser.add_argument("--train", required=True, help="IMAGES to train on")
    parser.add_argument("--out", type=Path, help="keep the run in this folder")
    protocol_arguments(parser)
    options, overrides = parser.parse_known_args()
    steps = str(options.steps)
    arguments = ["--config", options.config, "--data.train", options.train, "--data.validation_images", "0", *overrides]
    arguments += ["--training.max_steps", steps, "--training.checkpoint_every", steps, "--training.sample_every", steps]
    protocol = Protocol(options.test, options.size, options.perceptual, options.limit)
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        scores = train_and_score(options.out or Path(folder) / "run", arguments, protocol)
        seconds = time.monotonic() - started
    words = " ".join(overrides)
    print(f"{Path(options.config).name} {words}, {steps} steps, {protocol}, {seconds:.0f} s, commit {git_commit()}")
    print(json.dumps(scores))


if __name__ == "__main__":
    sys.exit(exit_status(main, "fixed_budget"))
