"""Row 13: one of two processes is killed in the middle of training.

The other must end by itself within 60 seconds, its status not 0; the same command must then resume from the newest
checkpoint and finish the run, which is shortened to two further steps.
No launcher watches here: under `accelerate launch` the launcher ends the others, too.
"""

from __future__ import annotations

import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from trials import Trial, arguments, make_images, make_recipe

from ldm_ae.training.checkpoints.checkpoint import newest_checkpoint
from runs import Run, run

SECONDS = 60.0


def main() -> int:
    """Run it from the command line."""
    options = arguments(__doc__, trials=10).parse_args()
    trial = Trial(13, "one of two processes is killed", "the other ends within 60 s, then the command resumes")
    randomness = random.Random(options.seed)
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        images = make_images(Path(folder) / "images", 14)
        for number in range(options.trials):
            seconds, held, words = one_death(images, Path(folder) / str(number), number % 2, randomness.uniform(0, 1.0))
            slowest = max(slowest, seconds)
            trial.count(held, words)
    trial.figures["slowest end"] = f"{slowest:.1f} s"
    return trial.finish(options.json)


def one_death(images: Path, root: Path, victim: int, delay: float) -> tuple[float, bool, str]:
    """Seconds until the other had ended, whether all held, and words."""
    root.mkdir()
    recipe = make_recipe(root / "recipe.yaml", images, max_steps=200, checkpoint_every=4, validate_every=1000)
    log, out = root / "log", root / "run"
    command = ["train", "--config", str(recipe), "--out", str(out)]
    both = Run(command, log, processes=2)
    while both.running() and not (out / "metrics.jsonl").is_file():
        time.sleep(0.01)
    time.sleep(delay)
    was_running = both.running()
    both.send(signal.SIGKILL, ranks=[victim])
    began = time.monotonic()
    statuses = both.wait(SECONDS)
    seconds = time.monotonic() - began
    newest, damaged = newest_checkpoint(out / "checkpoints")
    step = _step(newest)
    again = run([*command, "--training.max_steps", str(step + 2)], log, processes=2)
    last, _ = newest_checkpoint(out / "checkpoints")
    finished = again == [0, 0] and _step(last) == step + 2
    resumed = newest is None or f"resuming from {newest.name}" in log.read_text()
    other = statuses[1 - victim]
    ended = was_running and statuses[victim] == -signal.SIGKILL and other > 0 and seconds < SECONDS
    return seconds, ended and finished and resumed and not damaged, (
        f"rank {victim} killed after {delay:.2f} s, running {was_running}: statuses {statuses} after {seconds:.1f} s, "
        f"newest {newest}, damaged {damaged}, again {again}, last {last}: {log.read_text()[-800:]}"
    )  # fmt: skip


def _step(checkpoint: Path | None) -> int:
    return 0 if checkpoint is None else int(checkpoint.name.removeprefix("step-"))


if __name__ == "__main__":
    sys.exit(main())
