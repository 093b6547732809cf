"""Trains, encodes and evaluates over a folder with every odd image: each is right, or listed with its reason.

    python scripts/reliability/odd_images.py

An image that is odd but valid has a plain twin, a PNG with the pixels that it means: both must give the same latents.
A broken one must be in the index of the store, in metrics.json and on the terminal of a training run, with its reason.
With a small `max_bad_fraction` each command ends with status 2, and names the number and the first reasons.

The peak of memory is the largest resident size of the command's process, which decodes by itself, less that of a
process that imports the same libraries and does nothing; the latter alone may be over a gigabyte. Valid images close
to the limit of 89 megapixels are not among the odd ones; `decode_image` says what those take.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from odd_colours import coloured, tolerance
from odd_pictures import BAD, STORED, chunk, encoded, odd, png_header_only, turned
from PIL import Image
from samples import Samples, make_samples
from trials import Trial, arguments, make_images, make_recipe

from ldm_ae.images.decoding import FORMATS
from ldm_ae.latents import LatentDataset, LatentStore, verify_store
from ldm_ae.training import newest_checkpoint, problems

ROOM = 256 * 10**6
WHITE = (255, 255, 255)
LOSSY = ("JPEG", "half", "hidden", "AVIF")
"""In the names of images that may be some levels off, by JPEG's or AVIF's transform or the rounding of alpha."""
BOMBS = {"bomb of 169 megapixels": 13_000, "bomb of 196 megapixels": 14_000}


class Folders(NamedTuple):
    """What `write_images` made."""

    mixed: Path
    """The odd images, their twins, and sixty others."""
    valid: dict[str, str]
    """Name of the image by key: valid ones, each with a twin."""
    broken: dict[str, str]


def write_images(folder: Path, *, real_bombs: bool) -> Folders:
    """Every odd picture under the extension .jpg, whatever it is; the twins and some others beside them."""
    mixed = make_images(folder, 60)
    pictures = odd(WHITE) | coloured(WHITE)
    upright = Image.open(mixed / "00000.png").convert("RGB").resize((16, 16))
    for orientation in STORED:
        pictures[f"EXIF orientation {orientation}"] = turned(upright, orientation, "PNG"), upright
    if "AVIF" in FORMATS:
        lossless = {"quality": 100, "subsampling": "4:4:4"}  # but for the rounding of its colour transform
        pictures["AVIF, EXIF orientation 6"] = turned(upright, 6, "AVIF", **lossless), upright
    found = Folders(mixed, {}, {})
    for number, (name, (data, expected)) in enumerate(pictures.items()):
        key = f"odd-{number:02d}.jpg"
        (mixed / key).write_bytes(data)
        image = expected if isinstance(expected, Image.Image) else Image.fromarray(expected)
        (mixed / twin_of(key)).write_bytes(encoded(image, "PNG"))
        found.valid[key] = name
    for number, (name, (data, _)) in enumerate(BAD.items()):
        key = f"bad-{number:02d}.jpg"
        (mixed / key).write_bytes(bomb(BOMBS[name]) if real_bombs and name in BOMBS else data)
        found.broken[key] = name
    return found


def twin_of(key: str) -> str:
    """The key of the plain image with the same pixels."""
    return f"twin-{key.removesuffix('.jpg')}.png"


def bomb(side: int) -> bytes:
    """A valid PNG of some hundred kilobytes: `side` x `side` black pixels."""
    packer = zlib.compressobj(1)
    row = bytes(1 + 3 * side)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    empty = png_header_only(side, side)
    start, end = empty.index(b"IDAT") - 4, empty.index(b"IEND") - 4
    return empty[:start] + chunk(b"IDAT", rows) + empty[end:]


class Run(NamedTuple):
    """A command that has ended."""

    status: int
    error: str
    peak_bytes: int


Command = Callable[..., Run]
"""Runs `ldm-ae` with these words. Without any, a process that has the libraries and does nothing."""


def process(*words: object) -> Run:
    """A process of its own."""
    program = ("-m", "ldm_ae.cli", *words) if words else (Path(__file__).with_name("preload.py"),)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    with tempfile.TemporaryFile("w+") as error:
        process = subprocess.Popen(
            [sys.executable, *map(str, program)], env=environment, stdout=subprocess.DEVNULL,
            stderr=error,
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        error.seek(0)
        unit = 1 if sys.platform == "darwin" else 1024
        return Run(process.returncode, error.read(), usage.ru_maxrss * unit)


def encode(command: Command, samples: Samples, images: Path, store: Path, *options: object) -> Run:
    """`ldm-ae encode`, the mode of the posterior, so that equal pixels give equal latents."""
    return command("encode", samples.run, images, store, "--workers", 0, "--latents", "mode", *options)


def evaluate(command: Command, samples: Samples, images: Path, out: Path, *options: object) -> Run:
    """`ldm-ae evaluate` without networks of its own."""
    small = ("--workers", 0, "--perceptual", "none", "--features", "none")
    return command("evaluate", samples.run, images, "--out", out, *small, *options)


def train(command: Command, images: Path, out: Path, *options: object) -> Run:
    """A little more than one epoch, so that every image comes up."""
    steps = math.ceil(len(list(images.iterdir())) / 16) + 1
    recipe = make_recipe(out.with_suffix(".yaml"), images, max_steps=steps, batch_size=16, accumulation=1)
    return command("train", "--config", recipe, "--out", out, "--data.workers", 0, *options)


def check_reasons(trial: Trial, found: Folders, reasons: dict[str, str], where: str) -> None:
    """Each broken image is there with the reason that it has, and no valid one is."""
    for key, name in found.broken.items():
        reason = reasons.get(key, "not listed")
        trial.count(bool(re.search(BAD[name][1], reason)), f"{where}: {name}: {reason}")
    trial.count(reasons.keys() <= found.broken.keys(), f"{where}: refuses {reasons.keys() - found.broken.keys()}")


def check_memory(trial: Trial, name: str, run: Run, base: Run) -> None:
    """The command's peak stays under a gigabyte above the libraries."""
    above = run.peak_bytes - base.peak_bytes
    trial.figures[f"{name} MB"] = f"{run.peak_bytes / 1e6:.0f} ({above / 1e6:.0f} above the libraries)"
    trial.count(above < ROOM, f"{name}: {above / 1e6:.0f} MB above the libraries at the peak")


def check_store(trial: Trial, found: Folders, run: Run, path: Path) -> None:
    """The store is whole, lists the broken images, and holds the same for a valid one and its twin."""
    trial.count(run.status == 0 and verify_store(path) == [], f"encode: status {run.status}, {run.error[-500:]}")
    store = LatentStore(path)
    check_reasons(trial, found, store.bad(), "encode")
    data = LatentDataset(store)
    position = {key: i for i, key in enumerate(store.good()["key"].to_pylist())}
    for key, name in found.valid.items():
        if key not in position:
            trial.count(False, f"encode: {name}: not in the store")
            continue
        error = float((data.read(position[key]) - data.read(position[twin_of(key)])).abs().max())
        # One level is 1/127.5 of the pixels' range, and this encoder's latents change less than ten times as much.
        # The last bits of a convolution depend on the place in the batch.
        levels = max(tolerance(name), any(word in name for word in LOSSY))
        allowed = 10 * levels / 127.5 or 1e-5
        trial.count(error <= allowed, f"encode: {name}: its latents differ by {error:.3g} from its twin's")


def check_encode(trial: Trial, command: Command, samples: Samples, found: Folders, folder: Path) -> None:
    """Encoding with any share of bad images allowed, and with a small one."""
    run = encode(command, samples, found.mixed, folder / "store", "--max-bad-fraction", 1)
    check_store(trial, found, run, folder / "store")
    check_memory(trial, "encode", run, command())
    run = encode(command, samples, found.mixed, folder / "share")
    check_share(trial, "encode", run, found, len(list(found.mixed.iterdir())))
    kept = len(LatentStore(folder / "share")) == len(LatentStore(folder / "store"))
    trial.count(kept and verify_store(folder / "share") == [], "encode: above the fraction, a valid image is lost")


def check_share(trial: Trial, name: str, run: Run, found: Folders, total: int | None) -> None:
    """Status 2, and the message has the number of bad images and the first reasons; `total` None: one is enough."""
    [number] = re.findall(r"error: .*?(\d+) of \d+ images", run.error) or ["0"]
    expected = len(found.broken) if total is not None else int(number)
    first = re.findall(r"(bad-\d\d\.jpg): (.*?)(?:;|$)", run.error.partition("the first: ")[2])
    named = bool(first) and all(re.search(BAD[found.broken[key]][1], reason) for key, reason in first[:1])
    held = run.status == 2 and 0 < int(number) == expected and named
    trial.count(held, f"{name} above the fraction: status {run.status}, {run.error[-500:]}")


def check_evaluate(trial: Trial, command: Command, samples: Samples, found: Folders, folder: Path) -> None:
    """Evaluating with any share of bad images allowed, and with a small one."""
    run = evaluate(command, samples, found.mixed, folder / "scores", "--max-bad-fraction", 1)
    trial.count(run.status == 0, f"evaluate: status {run.status}, {run.error[-500:]}")
    images = json.loads((folder / "scores" / "metrics.json").read_text())["protocol"]["images"]
    check_reasons(trial, found, images["rejected"], "evaluate")
    good = len(list(found.mixed.iterdir())) - len(found.broken)
    trial.count(images["count"] == good, f"evaluate: scores {images['count']} images of {good}")
    check_memory(trial, "evaluate", run, command())
    check_share(trial, "evaluate", evaluate(command, samples, found.mixed, folder / "share-scores"), found, good)


def check_train(trial: Trial, command: Command, found: Folders, folder: Path) -> None:
    """Training over an epoch with any share of bad images allowed, and with a small one."""
    run = train(command, found.mixed, folder / "run", "--data.max_bad_fraction", 1)
    newest, _ = newest_checkpoint(folder / "run" / "checkpoints")
    valid = run.status == 0 and newest is not None and problems(newest) == []
    trial.count(valid, f"train: status {run.status}, {run.error[-500:]}")
    reasons = dict(re.findall(r"^skipped (\S+): (.*)$", run.error, flags=re.MULTILINE))
    check_reasons(trial, found, reasons, "train")
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["rec_loss"] for line in lines if line["kind"] == "train"]
    trial.count(bool(losses) and all(map(math.isfinite, losses)), f"train: losses {losses}")
    check_memory(trial, "train", run, command())
    check_share(trial, "train", train(command, found.mixed, folder / "share-run"), found, None)


def main() -> int:
    """The trial of row 7."""
    options = arguments(__doc__, trials=1).parse_args()
    torch.set_num_threads(1)
    trial = Trial(
        7,
        "odd images through train, encode and evaluate",
        "correct or listed with the reason; under 256 MB above the libraries",
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        samples = make_samples(folder / "samples")
        found = write_images(folder / "images", real_bombs=True)
        trial.figures["odd images"] = len(found.valid) + len(found.broken)
        for _ in range(options.trials):
            check_encode(trial, process, samples, found, folder)
            check_evaluate(trial, process, samples, found, folder)
            check_train(trial, process, found, folder)
    return trial.finish(options.json)


if __name__ == "__main__":
    sys.exit(main())
