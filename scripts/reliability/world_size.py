"""Row 10: a run resumes with another number of processes, 1, 2, 1, at the same global batch; and at another one.

The order of samples must be that of a run with one process, and the losses its losses within 1e-5 (relative; float32,
group normalization in the discriminator, because batch normalization is not synchronized on CPUs). Another global batch
must be refused in words.
"""

from __future__ import annotations

import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from trials import Trial, arguments, make_images, make_recipe

from ldm_ae.training import Trainer
from runs import run

PARTS = ((3, 1), (6, 2), (9, 1))
"""(last step, number of processes) of each run."""
TOLERANCE = 1e-5
LOSSES = ("rec_loss", "kl_loss", "generator_loss", "discriminator_loss", "adaptive_weight", "log_variance")


def note_samples(notes: Path) -> None:
    """Let every step of this process write down its samples."""
    plain_step = Trainer.train_step

    def step(self: Trainer, batches: Any) -> Any:
        keys = [batch.keys for batch in batches]
        with (notes / f"rank{self.accelerator.process_index}.jsonl").open("a") as file:
            file.write(json.dumps([self.step, self.accelerator.num_processes, keys]) + "\n")
        return plain_step(self, batches)

    Trainer.train_step = step  # type: ignore[method-assign]


def samples(notes: Path) -> list[list[str]]:
    """The samples of each step in the order of the global stream: micro-batch j of rank r is part j * ranks + r."""
    steps: dict[int, dict[int, list[list[str]]]] = {}
    for path in sorted(notes.glob("rank*.jsonl")):
        for line in path.read_text().splitlines():
            step, _, keys = json.loads(line)
            steps.setdefault(step, {})[int(path.stem.removeprefix("rank"))] = keys
    ordered = []
    for _, ranks in sorted(steps.items()):
        parts = [ranks[rank][j] for j in range(len(ranks[0])) for rank in sorted(ranks)]
        ordered.append([key for part in parts for key in part])
    return ordered


def losses(out: Path) -> list[dict[str, float]]:
    """The losses of every step."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in LOSSES if name in line} for line in lines if line["kind"] == "train"]


def main() -> int:
    """Run it from the command line."""
    options = arguments(__doc__, trials=4).parse_args()
    trial = Trial(
        10, "processes 1, 2, 1 over resumes", "same samples, losses within 1e-5; another batch size is refused"
    )
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.trials):
            accumulation = (1, 2)[number % 2]
            held, words, difference = one_run(Path(folder) / str(number), options.seed + number, accumulation)
            worst = max(worst, difference)
            trial.count(held, words)
    trial.figures["largest relative difference of a loss"] = f"{worst:.1e}"
    return trial.finish(options.json)


def one_run(root: Path, seed: int, accumulation: int) -> tuple[bool, str, float]:
    """Whether it held, words, and the largest relative difference of a loss."""
    images = make_images(root / "images", 13)
    recipes = {}
    for processes in (1, 2):
        # The cosine ends at the same step in every part, so that max_steps may differ.
        path = make_recipe(root / f"{processes}.yaml", images, batch_size=4 // processes, accumulation=accumulation,
                           checkpoint_every=3, validate_every=100)  # fmt: skip
        recipe = yaml.safe_load(path.read_text())
        recipe["discriminator"]["init_args"]["norm"] = "group"
        recipe["optimizer"]["schedule"] = "constant"
        recipe["seed"] = seed
        path.write_text(yaml.safe_dump(recipe))
        recipes[processes] = path

    def part(out: Path, processes: int, steps: int, notes: Path) -> list[int]:
        notes.mkdir(exist_ok=True)
        words = ["train", "--config", str(recipes[processes]), "--out", str(out), "--training.max_steps", str(steps)]
        return run(words, root / "log", processes=processes, before=partial(note_samples, notes))

    statuses = [part(root / "whole", 1, PARTS[-1][0], root / "whole-notes")]
    for number, (steps, processes) in enumerate(PARTS):
        statuses.append(part(root / "parts", processes, steps, root / f"notes-{number}"))
    expected, found = samples(root / "whole-notes"), []
    for number in range(len(PARTS)):
        found += samples(root / f"notes-{number}")
    pairs = list(zip(losses(root / "whole"), losses(root / "parts"), strict=True))
    difference = max(
        (abs(a[name] - b[name]) / max(abs(a[name]), 1e-3) for a, b in pairs for name in a if name in b), default=1.0
    )
    more = ["--training.batch_size", "3", "--training.max_steps", "12"]
    [refused] = run(["train", "--config", str(recipes[1]), "--out", str(root / "parts"), *more], root / "refusal")
    told = "holds a run with another global_batch" in (root / "refusal").read_text()
    checks = {
        "statuses": all(status == 0 for part_statuses in statuses for status in part_statuses),
        "samples": found == expected and len(found) == PARTS[-1][0],
        "losses": len(pairs) == PARTS[-1][0] and all(a.keys() == b.keys() for a, b in pairs) and difference < TOLERANCE,
        "refusal": refused == 2 and told,
    }
    wrong = [name for name, held in checks.items() if not held]
    return (
        not wrong,
        f"seed {seed}: {wrong}, difference {difference:.1e}: {(root / 'log').read_text()[-600:]}",
        difference,
    )


if __name__ == "__main__":
    sys.exit(main())
