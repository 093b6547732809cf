"""Row 9: a second process on a run directory, and on a latent store, while the first is at work.

The first waits in its network's encoder until the second has ended, which must be with status 2 within 5 seconds of
its start, imports and all, naming the holder's host and PID, and leave everything alone; the first must finish. After
SIGKILL of a holder, whose decoding workers may live a little longer, the same command must get the folder at once.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from torch import Tensor
from trials import Trial, arguments, make_images, make_recipe

from ldm_ae.io.files import sha256
from ldm_ae.io.locks import LOCK
from ldm_ae.models import GaussianPosterior, KLAutoencoder
from runs import Run, run

SECONDS = 5.0


def main() -> int:
    """Run it from the command line."""
    options = arguments(__doc__, trials=20).parse_args()
    trial = Trial(
        9, "two processes on one folder", "one continues, the other names it within 5 s; stale locks recovered"
    )
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        commands = prepare(Path(folder))
        for number in range(options.trials):
            kind = list(commands)[number % len(commands)]
            out, log = Path(folder) / f"out-{number}", Path(folder) / f"log-{number}"
            words = [word.replace("OUT", str(out)) for word in commands[kind]]
            if number // len(commands) % 2:
                trial.count(*stale(words, out, log))
            else:
                seconds, held, failure = second_process(words, out, log)
                slowest = max(slowest, seconds)
                trial.count(held, failure)
    trial.figures["slowest refusal"] = f"{slowest:.1f} s"
    return trial.finish(options.json)


def prepare(root: Path) -> dict[str, list[str]]:
    """The commands, with OUT for the folder."""
    images = make_images(root / "images", 40)
    recipe = make_recipe(root / "recipe.yaml", images, max_steps=6, checkpoint_every=5)
    model = KLAutoencoder(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
                          mid_block_add_attention=False)  # fmt: skip
    model.save_pretrained(root / "model")
    encode = ["encode", str(root / "model"), str(images), "OUT", "--size", "16", "--batch-size", "1", "--device", "cpu"]
    return {"train": ["train", "--config", str(recipe), "--out", "OUT"], "encode": encode}


def wait_in_encoder(out: Path) -> None:
    """Let this process's network wait once it holds the folder, until the file that `_go_on` names is there."""
    plain_encode = KLAutoencoder.encode

    def encode(self: KLAutoencoder, pixel_values: Tensor) -> GaussianPosterior:
        if (out / LOCK).is_file():
            _waiting(out).touch()
            while not _go_on(out).exists():
                time.sleep(0.01)
        return plain_encode(self, pixel_values)

    KLAutoencoder.encode = encode  # type: ignore[method-assign]


def _waiting(out: Path) -> Path:
    return out.with_name(f"{out.name}-waits")


def _go_on(out: Path) -> Path:
    return out.with_name(f"{out.name}-goes-on")


def _start(words: list[str], out: Path, log: Path) -> Run:
    """The first process, once it is at work in the folder."""
    first = Run(words, log, before=partial(wait_in_encoder, out))
    while first.running() and not _waiting(out).exists():
        time.sleep(0.01)
    return first


def second_process(words: list[str], out: Path, log: Path) -> tuple[float, bool, str]:
    """Seconds that the second took, whether all was as it must be, and words."""
    first = _start(words, out, log)
    began = time.monotonic()
    second = subprocess.run(
        [sys.executable, "-m", "ldm_ae.cli", *words], capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    seconds = time.monotonic() - began
    held = first.running()
    _go_on(out).touch()
    lines = second.stderr.strip().splitlines()
    named = len(lines) == 1 and f"process {first.pids[0]} on {socket.gethostname()}, since 20" in lines[0]
    [status] = first.wait()
    good = held and second.returncode == 2 and named and seconds < SECONDS and status == 0
    return seconds, good, (
        f"{words[0]}: the first was at work: {held}, the second took {seconds:.1f} s, status {second.returncode}, "
        f"{second.stderr[-500:]}; the first ended with {status}: {log.read_text()[-500:]}"
    )  # fmt: skip


def stale(words: list[str], out: Path, log: Path) -> tuple[bool, str]:
    """SIGKILL the holder alone, not its workers, and start again at once."""
    first = _start(words, out, log)
    first.send(signal.SIGKILL, ranks=[0])
    first.wait()
    left = (out / LOCK).is_file()
    [status] = run(words, log)
    done = {path.name: sha256(path) for path in out.glob("*") if path.is_file()}
    good = left and status == 0 and LOCK not in done and len(done) > 0
    return good, f"{words[0]} after SIGKILL: lock file left {left}, status {status}: {log.read_text()[-500:]}"


if __name__ == "__main__":
    sys.exit(main())
