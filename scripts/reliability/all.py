"""Run every trial and put the table of results into docs/RELIABILITY.md.

`python scripts/reliability/all.py` takes about an hour on two quiet cores; `--only kill_training.py` runs one script's
lines again and keeps the others.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ldm_ae.core.environment import git_commit

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "RELIABILITY.md"
RESULTS = HERE.parents[1] / "docs" / "reliability.json"
BEGIN, END = "<!-- results: written by scripts/reliability/all.py -->", "<!-- end of results -->"
COMMANDS = (
    "kill_training.py --trials 50 --inside-saves 20",
    "kill_training.py --trials 50 --inside-saves 20 --processes 2",
    "kill_training.py --trials 20 --inside-saves 5 --signal SIGTERM",
    "kill_training.py --trials 20 --inside-saves 5 --signal SIGTERM --processes 2",
    "kill_training.py --trials 20 --inside-saves 5 --signal SIGINT",
    "kill_encoding.py",
    "kill_encoding.py --processes 2",
    "kill_encoding.py --buckets",
    "every_format.py",
    "trace_save.py",
    "full_disk.py",
    "mutations.py",
    "malicious.py",
    "odd_images.py",
    "odd_sources.py",
    "fuzz.py",
    "not_finite.py",
    "two_writers.py",
    "world_size.py",
    "fp16_overflow.py",
    "missing_state.py",
    "rank_death.py",
)


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="run only scripts whose name contains this text")
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    failed = 0
    for command in COMMANDS:
        if options.only is not None and options.only not in command:
            continue
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "result.json"
            script, *arguments = shlex.split(command)
            done = subprocess.run(
                [sys.executable, str(HERE / script), *arguments, "--json", str(result)], check=False
            )  # fmt: skip
            failed += done.returncode != 0
            if result.is_file():
                results[command] = json.loads(result.read_text()) | {"commit": git_commit(HERE)}
        RESULTS.write_text(json.dumps({c: results[c] for c in COMMANDS if c in results}, indent=2) + "\n")
        write_table(results)
    return 1 if failed else 0


def write_table(results: dict[str, Any]) -> None:
    """Put the results between the two marks of the document."""
    lines = ["| row | trial | must hold | passed | figures | command |", "|---|---|---|---|---|---|"]
    for command in COMMANDS:
        if command in results:
            found = results[command]
            figures = ", ".join(f"{name}: {value}" for name, value in found["figures"].items())
            count = f"**{found['passed']} of {found['trials']}**"
            how = f"`python scripts/reliability/{command}` ({found['seconds']:.0f} s)"
            lines.append(f"| {found['row']} | {found['name']} | {found['must_hold']} | {count} | {figures} | {how} |")
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
