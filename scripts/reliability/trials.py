"""What every trial shares: its options, counting, the line of results, and things to try with that are tiny.

A trial is one script with one row of docs/RELIABILITY.md. It counts what it tried and what held, prints one line, and
ends with status 0 only if all of it held. `all.py` runs them and writes the table.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

SHOWN_FAILURES = 10


class Trial:
    """Counts the trials of one row.

    Args:
        row: Number in docs/RELIABILITY.md.
        name: What is done, in a few words.
        must_hold: What counts as passed, in a few words.
    """

    def __init__(self, row: int, name: str, must_hold: str):
        self.row, self.name, self.must_hold = row, name, must_hold
        self.trials = self.passed = 0
        self.figures: dict[str, Any] = {}
        """Further numbers for the table, by name."""
        self.failures: list[str] = []
        self._started = time.monotonic()

    def count(self, held: bool, words: str) -> None:
        """One trial; `words` say which, and are printed if it did not hold."""
        self.trials += 1
        self.passed += held
        if not held:
            self.failures.append(words)
            if len(self.failures) <= SHOWN_FAILURES:
                print(f"  failed: {words}", flush=True)

    def finish(self, json_file: Path | None) -> int:
        """Print the line, write it as JSON if asked; the exit status. No trials at all is a failure."""
        seconds = time.monotonic() - self._started
        figures = "".join(f", {name} {value}" for name, value in self.figures.items())
        print(f"row {self.row}: {self.name}: {self.passed} of {self.trials} ({self.must_hold}){figures}, "
              f"{seconds:.0f} s", flush=True)  # fmt: skip
        if json_file is not None:
            result = {
                "row": self.row, "name": self.name, "must_hold": self.must_hold, "trials": self.trials,
                "passed": self.passed, "figures": self.figures, "seconds": round(seconds, 1),
                "failures": self.failures[:SHOWN_FAILURES],
            }  # fmt: skip
            json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        return 0 if self.trials and self.passed == self.trials else 1


def arguments(description: str | None, *, trials: int) -> argparse.ArgumentParser:
    """A parser with the options that all trials have; `trials` is the number that the table asks for."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--trials", type=int, default=trials, help="number of trials (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random choices (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    return parser


def make_images(folder: Path, count: int, *, size: int = 24) -> Path:
    """`count` smooth PNG images, `size` pixels high and a little wider, all different."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        coarse.resize((size + i % 7, size), Image.Resampling.BICUBIC).save(folder / f"{i:05d}.png")
    return folder


def make_recipe(path: Path, images: Path, **training: Any) -> Path:
    """A recipe that uses everything a run can hold, with networks so small that a step takes milliseconds.

    GAN on from step 1, adaptive weight, learned log-variance, EMA, clipping, accumulation, decoding workers.

    Args:
        path: The YAML file to write.
        images: The training images.
        training: Replaces keys of `training`, such as max_steps.
    """
    recipe = {
        "model": {
            "class_path": "ldm_ae.models.KLAutoencoder",
            "init_args": {
                "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4,
                "mid_block_add_attention": False,
            },
        },
        "data": {"train": str(images), "resolution": 16, "workers": 1, "validation_images": 2},
        "objective": {"discriminator_start": 1, "discriminator_warmup_steps": 1, "learned_log_variance": True},
        "discriminator": {
            "class_path": "ldm_ae.discriminators.PatchDiscriminator",
            "init_args": {"n_layers": 1, "ndf": 8, "norm": "batch"},
        },
        "optimizer": {"schedule": "cosine", "warmup_steps": 2},
        "training": {
            "max_steps": 12, "batch_size": 2, "accumulation": 2, "precision": "no", "ema_decay": 0.9,
            "max_grad_norm": 1.0, "log_every": 1, "sample_every": 1000, "validate_every": 6, "checkpoint_every": 2,
            "trackers": [],
        } | training,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path
