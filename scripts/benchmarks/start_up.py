"""How long commands take that compute nothing: `--help`, and mistakes in options. Checkouts take turns.

    python scripts/benchmarks/start_up.py CHECKOUT [CHECKOUT ...]

Each call is a process of its own. The table holds the median over rounds in seconds, smallest and largest in brackets.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

COMMANDS = (
    "--help", "encode --help", "encode images store --sise 32", "train --config nowhere.yaml",
    "train --config configs/kl_f8.yaml --lr 1e-4", "train --help",
)  # fmt: skip


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="+", type=Path, metavar="CHECKOUT", help="folders that contain ldm_ae/")
    parser.add_argument("--runs", type=int, default=5, help="number of rounds (default: %(default)s)")
    parser.add_argument("--cpu-time", action="store_true", help="measure processor time, for a busy machine")
    options = parser.parse_args()
    times: dict[tuple[str, Path], list[float]] = {}
    for turn in range(options.runs + 1):
        for command in COMMANDS:
            for checkout in options.checkouts:
                seconds = _call(checkout.resolve(), command.split(), cpu_time=options.cpu_time)
                if turn:  # The first round reads the files from the disk.
                    times.setdefault((command, checkout), []).append(seconds)
    print(f"| `ldm-ae` | {' | '.join(str(checkout) for checkout in options.checkouts)} |")
    print("|---|" + "---|" * len(options.checkouts))
    for command in COMMANDS:
        cells = (times[command, checkout] for checkout in options.checkouts)
        shown = (f"{median(found):.2f} s ({min(found):.2f}-{max(found):.2f})" for found in cells)
        print(f"| `{command}` | {' | '.join(shown)} |")


def _call(checkout: Path, arguments: list[str], *, cpu_time: bool) -> float:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    before, started = os.times(), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "ldm_ae.cli", *arguments], cwd=checkout, env=environment, check=False,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    seconds, after = time.perf_counter() - started, os.times()
    if cpu_time:
        return after.children_user + after.children_system - before.children_user - before.children_system
    return seconds


if __name__ == "__main__":
    main()
