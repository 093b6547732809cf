"""Row 4: the disk fills up during a save and during encoding.

Each trial gives a run a small file system of its own (tmpfs, in one mount namespace: needs root or user namespaces),
with room for some saves but not for all. The command must end with a status that is not 0 and one line that names the
path and the bytes needed; what counted before must count and load; with room again the same command must finish.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from trials import Trial, arguments, make_images, make_recipe

from ldm_ae.commands._inspection import inspect_path
from ldm_ae.core.errors import UserError
from ldm_ae.models import KLAutoencoder
from ldm_ae.training.checkpoints.checkpoint import load_state, newest_checkpoint
from runs import run

COMMANDS = ("train", "encode", "export")


def main() -> int:
    """Run it from the command line."""
    parser = arguments(__doc__, trials=9)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.inside:
        as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
        again = [sys.executable, __file__, "--inside", *sys.argv[1:]]
        return subprocess.run(["unshare", "--mount", *as_root, *again], check=False).returncode
    trial = Trial(
        4, "full disk", "one line with path and bytes, status not 0, existing files load, then the command resumes"
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        images = make_images(root / "images", 60)
        make_recipe(root / "recipe.yaml", images, max_steps=8, checkpoint_every=2, keep_checkpoints=4)
        KLAutoencoder(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
                      mid_block_add_attention=False).save_pretrained(root / "model")  # fmt: skip
        for number in range(options.trials):
            command = COMMANDS[number % len(COMMANDS)]
            size = SIZES[command][number // len(COMMANDS) % len(SIZES[command])]
            problem = fill(command, size, root)
            trial.count(not problem, f"{command} with {size} bytes: {problem}")
    return trial.finish(options.json)


SIZES = {
    "train": (1_300_000, 2_000_000, 2_700_000),
    "encode": (60_000, 120_000, 200_000),
    "export": (40_000, 80_000, 120_000),
}


def fill(command: str, size: int, root: Path) -> str:
    """One trial; what did not hold."""
    small = root / "small"
    small.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(small)], check=True)
    try:
        _fill(command, root, small)
    except (AssertionError, OSError, UserError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)  # what was loaded is mapped into memory
    return ""


def _fill(command: str, root: Path, small: Path) -> None:
    out = small / "out"
    first, second = root / f"{command}-first", root / f"{command}-second"
    words = {
        "train": ["train", "--config", str(root / "recipe.yaml"), "--out", str(out)],
        "encode": ["encode", str(root / "model"), str(root / "images"), str(out), "--size", "16", "--shard-size", "16",
                   "--workers", "0", "--device", "cpu"],
        "export": ["export", str(root / "model"), str(out)],
    }[command]  # fmt: skip
    [status] = run(words, first)
    output = first.read_text()
    lines = [line for line in output.splitlines() if line.startswith("ldm-ae: error")]
    assert status == 1, (status, output[-800:])
    assert len(lines) == 1, output[-800:]
    assert re.search(
        rf"cannot write {re.escape(str(small))}\S*: the disk is full, [\d,]+ bytes are needed", lines[0]
    ), lines
    if command == "train":
        _newest_loads(out)
    subprocess.run(["mount", "-o", "remount,size=100m", str(small)], check=True)
    [status] = run(words, second)
    assert status == 0, second.read_text()[-800:]
    found = inspect_path(out)
    assert found["problems"] == [], found
    first.unlink()
    second.unlink()


def _newest_loads(out: Path) -> None:
    """A checkpoint was there before the disk was full, and counts."""
    newest, damaged = newest_checkpoint(out / "checkpoints")
    assert newest is not None, list(out.rglob("*"))
    assert not damaged, damaged
    load_state(newest)


if __name__ == "__main__":
    sys.exit(main())
