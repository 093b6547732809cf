"""Row 8: NaN and Inf in an image, a loss term, the generator's and the discriminator's gradients, on one rank of a run.

On that step nothing may change on any rank: parameters, buffers, optimizers, EMA. The message names step, term and
samples; the run then continues. The same fault at every step stops the run, and earlier checkpoints are unchanged.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trials import Trial, arguments, make_images, make_recipe

from ldm_ae.data import Batch
from ldm_ae.losses import Objective
from ldm_ae.training import Trainer, newest_checkpoint
from runs import run

PLACES = ("image", "loss", "generator gradient", "discriminator gradient")
TERMS = {"image": "rec_loss", "loss": "rec_loss", "generator gradient": "grad_norm",
         "discriminator gradient": "discriminator_grad_norm"}  # fmt: skip
STEPS, FAULT_AFTER = 6, 3
IN_A_ROW = 4
STRIDE = 9
"""Between kinds, so that eight trials have every place with both values, and 32 every kind once."""


def state_tensors(trainer: Trainer) -> Iterator[Tensor]:
    """Everything that a step may change, the position in the data apart."""
    modules = [trainer.autoencoder, trainer.objective, *([trainer.discriminator] if trainer.discriminator else [])]
    for module in [*modules, *([trainer.averages.model] if trainer.averages.model else [])]:
        yield from module.parameters()
        yield from module.buffers()
    for optimizer in trainer.optimizers:
        for moments in optimizer.state.values():
            yield from (value for value in moments.values() if isinstance(value, Tensor))


def inject(place: str, value: float, rank: int, always: bool, notes: Path) -> None:
    """Break this process's training at `place` from the step after `FAULT_AFTER` on, once or always, if it is `rank`;
    note for each skipped step whether anything has changed, and its samples.
    """
    mine = int(os.environ.get("RANK", "0")) == rank
    plain_step = Trainer.train_step
    done = False

    def step(self: Trainer, batches: Sequence[Batch]) -> Any:
        nonlocal done
        due = self.step >= FAULT_AFTER and (always or not done)
        before = [tensor.detach().clone() for tensor in state_tensors(self)]
        undo: Callable[[], None] = lambda: None  # noqa: E731
        if due and mine:
            undo = _break(self, batches, place, value)
        done = done or due
        try:
            result = plain_step(self, batches)
        finally:
            undo()
        if result is None:
            after = list(state_tensors(self))
            same = len(before) == len(after) and all(map(torch.equal, before, after))
            note = {"step": self.step, "unchanged": same, "keys": [key for batch in batches for key in batch.keys]}
            with (notes / f"rank{os.environ.get('RANK', '0')}.jsonl").open("a") as file:
                file.write(json.dumps(note) + "\n")
        return result

    Trainer.train_step = step  # type: ignore[method-assign]


def _break(trainer: Trainer, batches: Sequence[Batch], place: str, value: float) -> Callable[[], None]:
    """One fault; gives what undoes it."""
    if place == "image":
        batches[0].pixel_values[1, 0, 2, 3] = value
        return lambda: None
    if place == "loss":
        plain = Objective.reconstruction
        Objective.reconstruction = lambda *a, **k: plain(*a, **k)._replace(  # type: ignore[method-assign, assignment]
            rec_loss=torch.tensor(value), nll=plain(*a, **k).nll * value
        )
        return partial(setattr, Objective, "reconstruction", plain)
    which = trainer.autoencoder if place == "generator gradient" else trainer.discriminator
    assert which is not None
    return next(which.parameters()).register_hook(lambda gradient: gradient * value).remove


def main() -> int:
    """Run it from the command line."""
    options = arguments(__doc__, trials=32).parse_args()
    trial = Trial(
        8, "NaN and Inf injected", "no weight changes on any rank; step, term and samples named; the run stops after N"
    )
    kinds = list(itertools.product(PLACES, (math.nan, math.inf), (1, 2), (False, True)))
    with tempfile.TemporaryDirectory() as folder:
        images = make_images(Path(folder) / "images", 14)
        for number in range(options.trials):
            kind = kinds[number * STRIDE % len(kinds)]
            out = Path(folder) / f"run-{number}"
            trial.count(*one_run(images, out, *kind))
    return trial.finish(options.json)


def one_run(images: Path, out: Path, place: str, value: float, processes: int, always: bool) -> tuple[bool, str]:
    """Whether a run with this fault did what it must, and words on what it did."""
    notes = out.with_name(f"{out.name}-notes")
    notes.mkdir(parents=True)
    recipe = make_recipe(notes / "recipe.yaml", images, max_steps=STEPS, checkpoint_every=1, accumulation=1,
                         max_bad_steps=IN_A_ROW)  # fmt: skip
    log = notes / "log"
    rank = processes - 1
    statuses = run(
        # Decoding workers and validation have no part in this, and take time.
        ["train", "--config", str(recipe), "--out", str(out), "--data.workers", "0", "--data.validation_images", "0"],
        log, processes=processes,
        before=partial(inject, place, value, rank, always, notes),
    )  # fmt: skip
    found = [[json.loads(line) for line in (notes / f"rank{r}.jsonl").read_text().splitlines()]
             if (notes / f"rank{r}.jsonl").is_file() else [] for r in range(processes)]  # fmt: skip
    words = log.read_text()
    newest, damaged = newest_checkpoint(out / "checkpoints")
    message = re.search(rf"skipped the update after step {FAULT_AFTER}: (.*) not finite; samples (.*)", words)
    # The last step of a series that ends the run raises instead of returning.
    expected_notes = IN_A_ROW - 1 if always else 1
    checks = {
        "statuses": statuses == ([1] * processes if always else [0] * processes),
        "every rank skipped it": all(len(notes_of_rank) == expected_notes for notes_of_rank in found),
        "nothing changed": all(note["unchanged"] for notes_of_rank in found for note in notes_of_rank),
        "term named": message is not None and TERMS[place] in message[1],
        "samples named": message is not None and bool(found[rank]) and found[rank][0]["keys"][1] in message[2],
        "last good checkpoint": newest is not None and not damaged
        and newest.name == f"step-{FAULT_AFTER if always else STEPS:08d}",
        "stopped": not always or f"stopped after {IN_A_ROW} consecutive steps" in words,
    }  # fmt: skip
    wrong = [name for name, held in checks.items() if not held]
    return not wrong, f"{place} {value}, {processes} processes, always {always}: {wrong}: {words[-800:]}"


if __name__ == "__main__":
    sys.exit(main())
