"""Row 1: end a training run at random moments, some of them inside a save, and give the same command again.

By SIGKILL, or by a signal that asks it to save first: SIGTERM as Slurm sends it, SIGINT as Ctrl-C does, both to
decoding workers, too.

Every byte of the last checkpoint must be that of a run that nobody disturbed: weights, optimizers, EMA, discriminator,
random states, position in the data. At every kill, once a checkpoint has counted, one must count and load. Trials take
turns between float32 and bfloat16; every run has accumulation, GAN, adaptive weight, EMA and a decoding worker.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from trials import Trial, arguments, make_images, make_recipe

from ldm_ae.io.manifests import MANIFEST
from ldm_ae.training.checkpoints.checkpoint import load_state, newest_checkpoint
from runs import POLL_SECONDS, Run, run

PRECISIONS = ("no", "bf16")


def last_checkpoint(folder: Path, steps: int) -> dict[str, str] | None:
    """Hashes of the files of a finished run's last checkpoint."""
    manifest = folder / "checkpoints" / f"step-{steps:08d}" / MANIFEST
    return json.loads(manifest.read_text())["files"] if manifest.is_file() else None


def main() -> int:
    """Run it from the command line."""
    parser = arguments(__doc__, trials=50)
    parser.add_argument(
        "--inside-saves", type=int, default=20, help="number of trials killed inside a save (default: %(default)s)"
    )
    parser.add_argument(
        "--processes", type=int, default=1, help="number of processes of one run (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=12, help="length of each run, at least 4 (default: %(default)s)")
    parser.add_argument("--signal", choices=("SIGKILL", "SIGTERM", "SIGINT"), default="SIGKILL", help="(%(default)s)")
    options = parser.parse_args()
    words = f"{options.signal} while training, {options.processes} process{'es' if options.processes > 1 else ''}"
    trial = Trial(1, words, "bitwise equal after rerunning the same command")
    with tempfile.TemporaryDirectory() as folder:
        kill_runs(trial, Path(folder), options.trials, options.inside_saves, options.processes, options.steps,
                  options.seed, signal.Signals[options.signal])  # fmt: skip
    return trial.finish(options.json)


def kill_runs(trial: Trial, folder: Path, trials: int, inside_saves: int, processes: int, steps: int, seed: int,
              number: signal.Signals = signal.SIGKILL) -> None:  # fmt: skip
    """Count `trials` signals, the last `inside_saves` of them inside a save."""
    images = make_images(folder / "images", 14)
    accumulation = 2 if processes == 1 else 1
    recipes, expected, seconds, saves = {}, {}, {}, 0
    for precision in PRECISIONS[: max(1, min(trials, len(PRECISIONS)))]:
        recipe = make_recipe(
            folder / f"{precision}.yaml", images, precision=precision, max_steps=steps, accumulation=accumulation
        )
        recipes[precision] = ["train", "--config", str(recipe), "--out"]
        out, started = folder / f"expected-{precision}", time.monotonic()
        statuses = run([*recipes[precision], str(out)], folder / "log", processes=processes)
        assert statuses == [0] * processes, (folder / "log").read_text()[-3000:]
        expected[precision], seconds[precision] = last_checkpoint(out, steps), time.monotonic() - started
    randomness = random.Random(seed)
    moments: Counter[str] = Counter()
    statuses_after: Counter[int] = Counter()
    which, too_late = -1, 0
    while trial.trials < trials and too_late < 10 * trials:
        which += 1
        precision = PRECISIONS[which % len(recipes)]
        out, log = folder / f"run-{which}", folder / f"log-{which}"
        command = [*recipes[precision], str(out)]
        started = Run(command, log, processes=processes)
        inside = trial.trials >= trials - inside_saves and _reach_save(started, out / "checkpoints", steps, randomness)
        if trial.trials < trials - inside_saves:
            end = time.monotonic() + randomness.uniform(0, seconds[precision])
            while started.running() and time.monotonic() < end:
                time.sleep(POLL_SECONDS)
        started.send(number)
        ended = started.wait()
        if ended == [0] * processes or (trial.trials >= trials - inside_saves and not inside):
            too_late += 1  # it had finished, or the save had: no trial
            continue
        saves += inside
        statuses_after.update(ended)
        newest, damaged = newest_checkpoint(out / "checkpoints")
        if newest is not None:
            load_state(newest)
        moments["before the first checkpoint" if newest is None else f"after {newest.name}"] += 1
        statuses = run(command, log, processes=processes)
        equal = last_checkpoint(out, steps) == expected[precision]
        # A signal before the first step, when there is nothing to save, ends a process itself, and with it the others.
        by_itself = -number in ended or set(ended) <= {128 + number, 0}
        trial.count(
            statuses == [0] * processes and equal and not damaged and by_itself,
            f"{which} ({precision}, newest after the kill {newest and newest.name}, inside a save: {inside}): "
            f"ended {ended}, then {statuses}, equal {equal}, damaged {damaged}: {log.read_text()[-1500:]}",
        )
    trial.figures |= {
        "inside a save": saves, "distinct newest checkpoints": len(moments),
        "exit statuses": " ".join(f"{status}: {count}" for status, count in sorted(statuses_after.items())),
    }  # fmt: skip


def _reach_save(started: Run, checkpoints: Path, steps: int, randomness: random.Random) -> bool:
    """Wait for one of the saves, and a moment of it; whether it was still going on then."""
    wanted = randomness.randrange(1, steps // 2)
    seen: set[str] = set()
    while started.running():
        going_on = [path for path in checkpoints.glob(".step-*.tmp")]
        seen |= {path.name for path in going_on}
        if len(seen) >= wanted and going_on:
            time.sleep(randomness.uniform(0, 0.02))
            return any(path.exists() for path in going_on)
        time.sleep(POLL_SECONDS)
    return False


if __name__ == "__main__":
    sys.exit(main())
