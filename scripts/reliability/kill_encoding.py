"""Row 2: SIGKILL `ldm-ae encode` at random moments, and give the same command again.

Runs on one store are killed until one ends by itself before its moment; then another store is begun, until all kills
are done and the last store is complete. After each kill every finished shard must have the hash that its record says,
and no run may write again what was finished before it. Of each store every file must then be byte for byte that of an
uninterrupted run: no image is lost, none is there twice.

Of several processes every second kill hits one alone, once they work on the store; the others must end by themselves
within 60 seconds. Before, while they wait for each other, it is for the launcher to end them.
"""

from __future__ import annotations

import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from trials import Trial, arguments, make_images

from ldm_ae.io.locks import LOCK, holder
from ldm_ae.latents import LatentStore, inspect_store, verify_store
from ldm_ae.latents.store.records import finished, recorded
from ldm_ae.models import KLAutoencoder
from runs import POLL_SECONDS, Run, run

SHARD = 40
SECONDS = 60.0


def main() -> int:
    """Run it from the command line."""
    parser = arguments(__doc__, trials=50)
    parser.add_argument("--images", type=int, default=2000, help="number of images of a store (default: %(default)s)")
    parser.add_argument(
        "--processes", type=int, default=1, help="number of processes of one run (default: %(default)s)"
    )
    parser.add_argument("--buckets", action="store_true", help="encode to two sizes, so a range has up to two files")
    options = parser.parse_args()
    words = f"SIGKILL while encoding {options.images} images{' to two sizes' if options.buckets else ''}"
    words += f", {options.processes} processes" if options.processes > 1 else ""
    trial = Trial(2, words, "0 lost, 0 duplicated, every file equal byte for byte to that of an uninterrupted run")
    with tempfile.TemporaryDirectory() as folder:
        sizes = ["--sizes", "16x16,16x20"] if options.buckets else ["--size", "16"]
        kill_runs(trial, Path(folder), options.trials, options.images, options.processes, options.seed, sizes)
    return trial.finish(options.json)


def kill_runs(
    trial: Trial, folder: Path, trials: int, images: int, processes: int, seed: int, sizes: Sequence[str]
) -> None:
    """Count `trials` kills; those of one store hold if the finished store does."""
    torch.manual_seed(seed)
    model = KLAutoencoder(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
                          mid_block_add_attention=False)  # fmt: skip
    model.save_pretrained(folder / "model")
    make_images(folder / "images", images, size=16)
    command = ["encode", str(folder / "model"), str(folder / "images"), *sizes, "--shard-size", str(SHARD),
               "--batch-size", "8", "--device", "cpu"]  # fmt: skip
    log = folder / "log"
    started = time.monotonic()
    statuses = run([*command, str(folder / "expected")], log, processes=processes)
    seconds = time.monotonic() - started
    assert statuses == [0] * processes, log.read_text()[-3000:]
    expected = contents(folder / "expected")
    randomness = random.Random(seed)
    stores = kept = 0
    while trial.trials < trials:
        out = folder / f"store-{stores}"
        kills, broken = kill_until_done(
            [*command, str(out)], out, log, processes, trials - trial.trials, seconds, randomness
        )
        kept += sum(kills)
        found = contents(out)
        lost, twice = _count(out, images)
        differ = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        held = not (broken or differ or lost or twice or verify_store(out))
        for which, shards in enumerate(kills):
            trial.count(held, f"store {stores}, kill {which} with {shards} shards done: {lost} lost, {twice} twice, "
                        f"other files {differ[:3]}, {broken[:3]}: {log.read_text()[-500:]}")  # fmt: skip
        stores += 1
        shutil.rmtree(out)
    trial.figures |= {"stores": stores, "finished shards found by the next run": kept}


def kill_until_done(
    command: list[str], out: Path, log: Path, processes: int, most: int, seconds: float, randomness: random.Random
) -> tuple[list[int], list[str]]:
    """The finished shards at each kill until the store is complete, and what did not hold."""
    kills: list[int] = []
    broken: list[str] = []
    before: dict[str, int] = {}
    while True:
        started = Run(command, log, processes=processes)
        end = time.monotonic() + (randomness.uniform(0, seconds / 2) if len(kills) < most else 1e9)
        while started.running() and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
        alone = processes > 1 and len(kills) % 2 and holder(out) is not None
        victims = [randomness.randrange(processes)] if alone else None
        started.send(signal.SIGKILL, ranks=victims)
        statuses = started.wait(SECONDS)
        killed = -signal.SIGKILL in statuses
        others = [status for rank, status in enumerate(statuses) if victims is not None and rank not in victims]
        if killed and any(status < 0 or (status == 0 and not _complete(out)) for status in others):
            broken.append(f"process {victims} was killed, but the statuses are {statuses}")
        now = {path.relative_to(out).as_posix(): path.stat().st_ino for path in out.glob("*/*.safetensors")}
        broken += [f"{name} was made again" for name, inode in before.items() if now.get(name) != inode]
        if not killed:
            if statuses != [0] * processes:
                broken.append(f"statuses {statuses}")
            return kills, broken
        names = recorded(out)
        broken += [f"{name} is recorded and damaged" for name in names if finished(out, name) is None]
        before = {file: inode for file, inode in now.items() if Path(file).name in names}
        kills.append(len(names))


def _complete(out: Path) -> bool:
    return bool(inspect_store(out, verify=False)["complete"])


def _count(out: Path, images: int) -> tuple[int, int]:
    """Images lost and images there twice, by their keys."""
    keys = LatentStore(out).good()["key"].to_pylist()
    return images - len(set(keys)), len(keys) - len(set(keys))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the lock by its path below `folder`."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != LOCK)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


if __name__ == "__main__":
    sys.exit(main())
