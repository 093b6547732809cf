"""Loading, training and encoding of RGB images by several checkouts, which take turns: has a change made them slower?

    python scripts/benchmarks/checkouts.py BEFORE AFTER

Each checkout has a process of one thread with its own code, and the images are the same files. Time is that of the
processor, for a busy machine. The table holds the median over rounds of the ratio of two times of the same round,
BEFORE divided by AFTER, so that 1 is equal speed and less is slower; smallest and largest ratio in brackets.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

TASKS = ("JPEG files to cropped batches", "PNG files to cropped batches", "training step", "folder to a store")


def main() -> None:
    """Measure and print the table; with --serve, measure in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="+", type=Path, metavar="CHECKOUT", help="folders that contain ldm_ae/")
    parser.add_argument("--runs", type=int, default=9, help="number of rounds (default: %(default)s)")
    parser.add_argument("--images", type=int, default=24, help="number of photos (default: %(default)s)")
    parser.add_argument("--side", type=int, default=256, help="side of the crops in pixels (default: %(default)s)")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(tasks(options.serve, options.side))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), options.images, 2 * options.side)
        times = interleaved(options, Path(folder))
    before, *others = options.checkouts
    print(f"| task | {before} | " + " | ".join(map(str, others)) + " |")
    print("|---|---|" + "---|" * len(others))
    for task in TASKS:
        cells = [f"{1000 * median(times[before, task]):.0f} ms"]
        for other in others:
            ratios = [a / b for a, b in zip(times[before, task], times[other, task], strict=True)]
            cells.append(f"**{median(ratios):.3f}** × ({min(ratios):.3f}-{max(ratios):.3f})")
        print(f"| {task} | {' | '.join(cells)} |")


def write_images(folder: Path, count: int, side: int) -> None:
    """Write photos of the extra `offline` as JPEG and PNG, with a shorter side of `side`."""
    from ldm_ae.data import decode_image, open_source

    source = open_source("photos:train")
    for kind in ("jpg", "png"):
        (folder / kind).mkdir()
        for number in range(count):
            image = decode_image(source[number % len(source)].data)
            image.resize((side * 4 // 3, side)).save(folder / kind / f"{number:03d}.{kind}")


def interleaved(options: argparse.Namespace, folder: Path) -> dict[tuple[Path, str], list[float]]:
    """Return the seconds of each task of each checkout, by round."""
    processes = {checkout: start(checkout.resolve(), options.side, folder) for checkout in options.checkouts}
    times: dict[tuple[Path, str], list[float]] = {}
    for turn in range(-1, options.runs):
        for task in TASKS:
            order = options.checkouts[turn % len(processes) :] + options.checkouts[: turn % len(processes)]
            for checkout in order:
                seconds = ask(processes[checkout], task)
                if turn >= 0:  # the first round allocates and reads the files from the disk
                    times.setdefault((checkout, task), []).append(seconds)
    for process in processes.values():
        process.communicate()
    return times


def start(checkout: Path, side: int, folder: Path) -> subprocess.Popen[str]:
    """Start the process of a checkout."""
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        str(checkout),
        "--serve",
        str(folder),
        "--side",
        str(side),
    ]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def ask(process: subprocess.Popen[str], task: str) -> float:
    """Return the seconds of a task in a process."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{task}\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"the process of a checkout ended with exit status {process.wait()}; its output is above")
    return float(json.loads(line)["seconds"])


def serve(calls: dict[str, Callable[[], object]]) -> None:
    """Execute the task in each line of the standard input; answer with one line of JSON."""
    for line in sys.stdin:
        started = time.process_time()
        calls[line.strip()]()
        print(json.dumps({"seconds": time.process_time() - started}), flush=True)


def tasks(folder: Path, side: int) -> dict[str, Callable[[], object]]:
    """Return the tasks of this process's checkout, by functions that are the same in all versions."""
    import torch

    from ldm_ae.core.allocator import keep_freed_memory
    from ldm_ae.data import EvaluationLoader, ImageTransform, open_source
    from ldm_ae.discriminators import PatchDiscriminator
    from ldm_ae.latents import encode_images
    from ldm_ae.losses import L1, ObjectiveConfig, ShiftTolerantLPIPS
    from ldm_ae.models import KLAutoencoder
    from ldm_ae.training import TrainingLosses

    torch.manual_seed(0)
    torch.set_num_threads(1)
    keep_freed_memory(torch.device("cpu"))  # as commands do; without it, page faults differ from process to process
    transform = ImageTransform(size=side)
    model = KLAutoencoder(block_out_channels=(32, 64, 96), layers_per_block=1, norm_num_groups=8,
                          mid_block_add_attention=False)  # fmt: skip
    objective = ObjectiveConfig(reconstruction=L1(), perceptual=ShiftTolerantLPIPS(net="alex"), discriminator_start=0)
    losses = TrainingLosses(model.train(), objective, discriminator=PatchDiscriminator(n_layers=2, ndf=32))
    optimizers = [
        torch.optim.Adam(parameters, lr=1e-4)
        for parameters in (losses.generator_parameters(), losses.discriminator_parameters())
    ]
    batch = torch.rand(4, 3, side // 4, side // 4) * 2 - 1
    encoder = KLAutoencoder(pretrained="kl-f8c4-small").eval()

    def load(kind: str) -> None:
        for _ in EvaluationLoader(open_source(folder / kind), transform, batch_size=8):
            pass

    def step(count: int = 3) -> None:
        for number in range(count):
            generator = losses.generator_loss(batch, number)
            generator.loss.backward()
            optimizers[0].step()
            optimizers[0].zero_grad()
            found: Any = losses.discriminator_loss(generator, number)
            found.loss.backward()
            optimizers[1].step()
            optimizers[1].zero_grad()

    def encode() -> None:
        with tempfile.TemporaryDirectory() as out:
            small = ImageTransform(size=side // 2)
            encode_images(encoder, open_source(folder / "jpg"), Path(out) / "store", transform=small, device="cpu")

    calls: list[Callable[[], object]] = [lambda: load("jpg"), lambda: load("png"), step, encode]
    return dict(zip(TASKS, calls, strict=True))


if __name__ == "__main__":
    main()
