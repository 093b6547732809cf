"""Opens checkpoints, models and latent stores made to do harm: nothing of them is executed or written elsewhere.

    python scripts/reliability/malicious.py

Each attack changes copies of a valid run and a valid store, and corrects every hash. Then everything
that opens such folders opens them: the functions, and the commands. What must hold: the canary that each pickle would
lay is not there, everything around the folders is as it was, and every answer is success or a UserError, exit status
0 or 2 with one or two lines.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from attacks import ATTACKS, Scene
from samples import Samples, make_samples
from trials import Trial, arguments

from ldm_ae.cli import main as ldm_ae
from ldm_ae.commands._inspection import inspect_path
from ldm_ae.core.errors import UserError
from ldm_ae.latents import LatentDataset, decode_store, verify_store
from ldm_ae.models import load_autoencoder
from ldm_ae.training.checkpoints.checkpoint import load_state, newest_checkpoint


class Answer(NamedTuple):
    """What one way of opening gave."""

    way: str
    refused: bool
    wrong: str | None
    """What must not be, in words."""


def ways(scene: Scene, samples: Samples) -> dict[str, Callable[[], object]]:
    """Everything that opens a model, a checkpoint or a store, by name; a command gives its exit status."""
    checkpoints, out = scene.run / "checkpoints", scene.folder / "out"

    def read_newest() -> object:
        newest, _ = newest_checkpoint(checkpoints)
        return newest and load_state(newest)

    def read_items() -> object:
        data = LatentDataset(scene.store, draw="sample", flip="half", spec=None)
        return [data[i] for i in range(len(data))]

    def command(*words: object) -> Callable[[], object]:
        return lambda: ldm_ae([str(word) for word in words])

    model = load_autoencoder(samples.run)
    images = ("--workers", 0, "--device", "cpu", "--limit", 2, "--perceptual", "none", "--features", "none")
    resume = ("--training.max_steps", 5, "--data.workers", 0)
    return {
        "load_autoencoder": lambda: load_autoencoder(scene.run),
        "load_autoencoder of a checkpoint": lambda: load_autoencoder(scene.checkpoint),
        "inspect_path": lambda: inspect_path(scene.run),
        "load_state": read_newest,
        "LatentDataset": read_items,
        "verify_store": lambda: verify_store(scene.store),
        "decode_store": lambda: decode_store(model, scene.store, out / "0", device="cpu"),
        "inspect run": command("inspect", scene.run),
        "inspect checkpoint": command("inspect", scene.checkpoint, "--json"),
        "inspect store": command("inspect", scene.store),
        "decode": command("decode", scene.run, scene.store, out / "1", "--device", "cpu", "--other-model"),
        "evaluate": command("evaluate", scene.run, samples.images, "--out", out / "2", *images),
        "train": command("train", "--config", samples.recipe, "--out", scene.run, *resume),
    }


def open_it(way: str, call: Callable[[], object]) -> Answer:
    """Run one way; any exception but a UserError is wrong, and so is a message of many lines."""
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(stderr):
            result = call()
    except UserError as error:
        text = str(error)
        return Answer(way, True, None if text.count("\n") < 2 else f"prints several lines: {text[:300]}")
    except Exception as error:  # noqa: BLE001 - that any may come out is what is tried here
        return Answer(way, False, f"{type(error).__name__}: {str(error)[:300]}")
    status = result if isinstance(result, int) and " " in f"{way} " and way in COMMANDS else 0
    if status not in (0, 2):
        return Answer(way, False, f"exit status {status}: {stderr.getvalue()[-300:]}")
    error_lines = stderr.getvalue().partition("ldm-ae: error: ")[2].strip().splitlines()
    if status == 2 and not 1 <= len(error_lines) <= 2:
        return Answer(way, True, f"prints {len(error_lines)} error lines: {stderr.getvalue()[-300:]}")
    return Answer(way, status == 2 or (way == "verify_store" and bool(result)), None)


COMMANDS = ("inspect run", "inspect checkpoint", "inspect store", "decode", "evaluate", "train")


def surroundings(scene: Scene) -> dict[str, Any]:
    """Everything beside the folders that a command was given: names, sizes and contents."""
    inside = (scene.run, scene.store, scene.folder / "out")
    return {
        str(p): (os.readlink(p) if p.is_symlink() else p.read_bytes() if p.is_file() else None)
        for p in scene.folder.parent.rglob("*")
        if not any(p == folder or folder in p.parents for folder in inside)
    }


def try_attack(samples: Samples, folder: Path, name: str) -> list[Answer]:
    """All ways of opening what one attack has made; the folder around is `folder`."""
    attack = ATTACKS[name]
    answers = []
    for way in ways(Scene(folder / "none"), samples):
        if folder.exists():
            shutil.rmtree(folder)
        scene = Scene(folder / "scene")  # made anew, so that one way cannot prepare the next
        shutil.copytree(samples.run, scene.run)
        shutil.copytree(samples.store, scene.store)
        (folder / "precious.txt").write_text("of the user")
        attack.build(scene)
        before = surroundings(scene)
        answer = open_it(way, ways(scene, samples)[way])
        if scene.canary.exists():
            answer = answer._replace(wrong="EXECUTED")
        elif (after := surroundings(scene)) != before:
            changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
            answer = answer._replace(wrong=f"wrote outside: {changed}")
        answers.append(answer)
    return answers


def run_trial(trial: Trial, samples: Samples, folder: Path, names: list[str]) -> None:
    """Each attack is one trial: nothing wrong, and the ways that must refuse it do."""
    refusals = 0
    for name in names:
        answers = try_attack(samples, folder, name)
        wrong = [f"{answer.way}: {answer.wrong}" for answer in answers if answer.wrong]
        refused = {answer.way for answer in answers if answer.refused}
        if missing := set(ATTACKS[name].refused_by) - refused:
            wrong.append(f"not refused by {', '.join(sorted(missing))}")
        refusals += len(refused)
        trial.count(not wrong, f"{name}: {'; '.join(wrong)}")
    trial.figures |= {"executed": sum("EXECUTED" in failure for failure in trial.failures),
                      "written outside": sum("wrote outside" in failure for failure in trial.failures),
                      "refusals": refusals}  # fmt: skip


def main() -> int:
    """The trial of row 6."""
    options = arguments(__doc__, trials=len(ATTACKS)).parse_args()
    torch.set_num_threads(1)
    trial = Trial(6, "malicious checkpoints, models and stores", "not executed, nothing written outside, refused")
    with tempfile.TemporaryDirectory() as name:
        samples = make_samples(Path(name) / "samples")
        run_trial(trial, samples, Path(name) / "attack", list(ATTACKS)[: options.trials])
    return trial.finish(options.json)


if __name__ == "__main__":
    sys.exit(main())
