"""Damages every file of a checkpoint and of a latent store at random: all of it is detected, nothing else happens.

    python scripts/reliability/mutations.py

Truncated, bits flipped in the header and in the data, bytes appended, removed, swapped with another file, JSON changed
at random. For each: `problems` or `verify_store` says why in lines of text, training finds the previous checkpoint, no
other exception comes out, and neither time nor memory run away. Some are then trained on by the real command.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from samples import Samples, Snapshot, copy_run, ldm_ae, make_samples, peak_megabytes
from trials import Trial, arguments

from ldm_ae.commands._inspection import inspect_path
from ldm_ae.core.errors import UserError
from ldm_ae.latents import verify_store
from ldm_ae.training import newest_checkpoint, problems

NEWEST, PREVIOUS = "step-00000004", "step-00000002"
SECONDS, MEGABYTES = 20, 256
"""A mutation that takes longer hangs; all of them together may raise the peak of memory by no more."""
HUGE = (10**400, 2**63, 1e308, -(10**30), 0.1)
OTHER = (None, True, 7, "text", [], {}, [1, [2]], "\n\x1b[2J", "../../../etc/passwd")
DEEP = "deep nesting goes here"


def mutate_json(rng: random.Random, data: bytes) -> bytes:
    """A JSON file with one thing changed, written as its writer would where that can be."""
    way = rng.choice(["delete", "type", "huge", "deep", "twice", "nan", "bytes"])
    if way == "bytes":  # no UTF-8
        place = rng.randrange(len(data))
        return data[:place] + bytes([rng.choice([0x80, 0xC0, 0xFF])]) + data[place:]
    value = json.loads(data)
    places = list(_places(value))
    if way == "twice":
        key, item = rng.choice([(key, container[key]) for container, key in places if isinstance(key, str)])
        name = json.dumps(key)
        return data.replace(name.encode(), f"{name}: {json.dumps(item)}, {name}".encode(), 1)
    container, key = rng.choice(places)
    if way == "delete":
        del container[key]
    else:
        container[key] = {"type": rng.choice(OTHER), "huge": rng.choice(HUGE), "deep": DEEP, "nan": float("nan")}[way]
    depth = 10 ** rng.randrange(2, 6)
    text = json.dumps(value, indent=2) + "\n"
    return text.replace(json.dumps(DEEP), "[" * depth + "]" * depth).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything inside, at any depth."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def header_length(data: bytes, name: str) -> int:
    """Bytes that describe the remaining ones."""
    if name.endswith(".safetensors"):
        return 8 + int.from_bytes(data[:8], "little")
    return min(64, len(data))


def flip_bits(rng: random.Random, data: bytes, start: int, end: int) -> bytes:
    """One to four bits of data[start:end] flipped."""
    found = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        found[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
    return bytes(found)


def mutate(rng: random.Random, kind: str, snapshot: Snapshot, others: list[bytes]) -> str:
    """Change one file of the folder (two if they are swapped); which, in words. `others` are files from elsewhere."""
    names = sorted(name for name in snapshot.files if kind != "json" or name.endswith(".json"))
    name = rng.choice(names)
    path, data = snapshot.folder / name, snapshot.files[name]
    middle = min(header_length(data, name), len(data) - 1)
    if kind == "truncated":
        path.write_bytes(data[: rng.choice([0, rng.randrange(len(data)), rng.randrange(min(16, len(data)))])])
    elif kind == "header bits":
        path.write_bytes(flip_bits(rng, data, 0, middle))
    elif kind == "data bits":
        path.write_bytes(flip_bits(rng, data, middle, len(data)))
    elif kind == "appended":
        path.write_bytes(data + rng.choice([b"\n", b"\0", b" ", rng.randbytes(rng.randrange(1, 5000))]))
    elif kind == "removed":
        path.unlink()
    elif kind == "swapped":
        other = rng.choice(names)
        path.write_bytes(snapshot.files[other] if rng.random() < 0.5 else rng.choice(others))
        if rng.random() < 0.5:
            (snapshot.folder / other).write_bytes(data)
    else:
        path.write_bytes(mutate_json(rng, data))
    return f"{kind} of {snapshot.folder.name}/{name}"


KINDS = ("truncated", "header bits", "data bits", "appended", "removed", "swapped", "json", "json")
"""JSON twice: it vouches for the other files."""


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """TimeoutError after `seconds`."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check_checkpoint(folder: Path) -> str | None:
    """What is wrong with the answer to a damaged newest checkpoint."""
    reasons = problems(folder / NEWEST)
    found, damaged = newest_checkpoint(folder)
    if found != folder / PREVIOUS or damaged != {NEWEST: reasons}:
        return f"newest_checkpoint gives {found}, {damaged}"
    return _check_reasons(reasons, inspect_path(folder / NEWEST)["problems"])


def check_store(store: Path) -> str | None:
    """What is wrong with the answer to a damaged store."""
    reasons = verify_store(store)
    try:
        shown = inspect_path(store)["problems"]
    except UserError as error:  # too damaged to be recognized as a store
        shown = [str(error)]
    return _check_reasons(reasons, shown)


def _check_reasons(reasons: list[str], shown: list[str]) -> str | None:
    if not reasons:
        return "not detected"
    if reasons != shown:
        return f"inspect prints {shown}, expected {reasons}"
    odd = [reason for reason in reasons if not reason.isprintable() or len(reason) > 500]
    return f"not one line of text: {odd[0]!r}" if odd else None


def try_mutations(trial: Trial, samples: Samples, count: int, seed: int) -> Counter[str]:
    """`count` mutations of the newest checkpoint and of the store, each put back; how many of each kind."""
    rng = random.Random(seed)
    targets = [
        (Snapshot(samples.checkpoints / NEWEST), lambda: check_checkpoint(samples.checkpoints)),
        (Snapshot(samples.store), lambda: check_store(samples.store)),
    ]
    others = list(Snapshot(samples.checkpoints / PREVIOUS).files.values())
    counts: Counter[str] = Counter()
    slowest = 0.0
    while sum(counts.values()) < count:
        kind = rng.choice(KINDS)
        snapshot, check = rng.choice(targets)
        words = mutate(rng, kind, snapshot, others)
        if snapshot.changed():
            counts[kind] += 1
            started = time.monotonic()
            try:
                with time_limit(SECONDS):
                    wrong = check()
            except Exception as error:  # noqa: BLE001 - that any may come out is what is tried here
                wrong = f"{type(error).__name__}: {error}"
            slowest = max(slowest, time.monotonic() - started)
            trial.count(wrong is None, f"{words}: {str(wrong)[:300]}")
        snapshot.restore()
    trial.figures["slowest s"] = round(slowest, 2)
    return counts


def train_on(trial: Trial, samples: Samples, folder: Path, count: int, seed: int) -> None:
    """Check that the real command resumes from the previous checkpoint, names the damaged one, and writes it anew."""
    rng = random.Random(seed)
    others = list(Snapshot(samples.checkpoints / PREVIOUS).files.values())
    for number in range(count):
        run = copy_run(samples, folder / f"run-{number}")
        snapshot = Snapshot(run / "checkpoints" / NEWEST)
        words = mutate(rng, KINDS[number % len(KINDS)], snapshot, others)
        while not snapshot.changed():
            words = mutate(rng, KINDS[number % len(KINDS)], snapshot, others)
        reason = (problems(snapshot.folder) or ["not detected"])[0]
        done = ldm_ae("train", "--config", samples.recipe, "--out", run)
        lines = done.stderr.splitlines()
        skipped = any(NEWEST in line and line.endswith(reason) for line in lines)
        resumed = any(f"from {PREVIOUS}" in line for line in lines)
        held = done.returncode == 0 and skipped and resumed and not problems(snapshot.folder)
        trial.count(held, f"train after {words}: status {done.returncode}, {done.stderr[-500:]}")


def run_trial(trial: Trial, folder: Path, *, mutations: int, trainings: int, seed: int) -> None:
    """Everything, in `folder`."""
    samples = make_samples(folder)
    problems_before = problems(samples.checkpoints / NEWEST), verify_store(samples.store)
    trial.count(problems_before == ([], []), f"valid before: {problems_before}")
    before = peak_megabytes()
    trial.figures |= try_mutations(trial, samples, mutations, seed)
    growth = peak_megabytes() - before
    trial.figures["MB more at the peak"] = round(growth)
    trial.count(growth < MEGABYTES, f"{growth:.0f} MB more memory")
    problems_after = problems(samples.checkpoints / NEWEST), verify_store(samples.store)
    trial.count(problems_after == ([], []), f"valid after restoring: {problems_after}")
    train_on(trial, samples, folder, trainings, seed)
    trial.figures["trained on"] = trainings


def main() -> int:
    """The trial of row 5."""
    options = arguments(__doc__, trials=3000).parse_args()
    torch.set_num_threads(1)
    trial = Trial(5, "mutations of checkpoint and store", "detected, previous checkpoint used, no crash")
    with tempfile.TemporaryDirectory() as folder:
        run_trial(trial, Path(folder), mutations=options.trials, trainings=8, seed=options.seed)
    return trial.finish(options.json)


if __name__ == "__main__":
    sys.exit(main())
