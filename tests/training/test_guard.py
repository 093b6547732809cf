"""Non-finite steps change nothing, report their cause, and stop the run if they continue."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldm_ae.core.errors import RunError
from ldm_ae.data import Batch
from ldm_ae.io.files import sha256
from ldm_ae.training import Trainer, newest_checkpoint
from ldm_ae.training.checkpoints import checkpoint
from ldm_ae.training.checkpoints import state as state_module
from ldm_ae.training.checkpoints.saver import Saver
from ldm_ae.training.monitoring.guard import Guard
from tests.training.common import run

pytestmark = pytest.mark.usefixtures("one_parser")

Fault = Callable[[Trainer, Sequence[Batch]], Callable[[], None]]


def in_image(_: Trainer, batches: Sequence[Batch]) -> Callable[[], None]:
    batches[1].pixel_values[1, 0, 3, 3] = math.nan
    return lambda: None


def in_generator(trainer: Trainer, _: Sequence[Batch]) -> Callable[[], None]:
    return trainer.autoencoder.last_layer.register_hook(lambda gradient: gradient * math.inf).remove


def in_discriminator(trainer: Trainer, _: Sequence[Batch]) -> Callable[[], None]:
    assert trainer.discriminator is not None
    return next(trainer.discriminator.parameters()).register_hook(lambda gradient: gradient * math.nan).remove


def state(trainer: Trainer) -> Iterator[Tensor]:
    assert trainer.discriminator is not None
    assert trainer.averages.model is not None
    for module in (trainer.autoencoder, trainer.objective, trainer.discriminator, trainer.averages.model):
        yield from module.state_dict().values()
    if trainer.averages.power is not None:
        for averaged in trainer.averages.power.state().values():
            yield from averaged.values()
    for optimizer in trainer.optimizers:
        for moments in optimizer.state.values():
            yield from moments.values()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "term"),
    [
        (in_image, "rec_loss"),
        pytest.param(in_generator, "grad_norm", marks=pytest.mark.slow),
        pytest.param(in_discriminator, "discriminator_grad_norm", marks=pytest.mark.slow),
    ],
)
def test_non_finite_step_changes_nothing_and_names_the_term(
    tiny_config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    term: str,
) -> None:
    plain_step = Trainer.train_step
    left_out: list[list[str]] = []

    def step(self: Trainer, batches: Sequence[Batch]) -> Any:
        if self.step != 3 or left_out:
            return plain_step(self, batches)
        before = [tensor.clone() for tensor in state(self)]
        undo = fault(self, batches)
        assert plain_step(self, batches) is None
        undo()
        after = list(state(self))
        assert len(before) == len(after)
        assert all(map(torch.equal, before, after))
        left_out.append([key for batch in batches for key in batch.keys])
        return None

    monkeypatch.setattr(Trainer, "train_step", step)
    out = run(tiny_config, tmp_path / "run", "--objective.gan_weight", "0.3", "--training.power_ema", "true")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    [alarm] = [line for line in lines if line["kind"] == "alarm"]
    assert alarm["step"] == 3
    assert term in alarm["message"].split(" not finite")[0]
    expected = left_out[0][3:4] if fault is in_image else left_out[0]
    assert alarm["message"].endswith(f"samples {', '.join(expected)}")
    assert lines[-1]["step"] == 6  # it went on to the end


@pytest.mark.slow
def test_run_stops_after_too_many_consecutive_bad_steps(
    tiny_config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain_step = Trainer.train_step
    steps = []

    def step(self: Trainer, batches: Sequence[Batch]) -> Any:
        # Two bad ones, a good one, and then bad ones for ever: only those in a row count.
        steps.append(self.step)
        if len(steps) in (4, 5) or len(steps) > 6:
            in_image(self, batches)
        return plain_step(self, batches)

    monkeypatch.setattr(Trainer, "train_step", step)
    with pytest.raises(RunError, match="stopped after 3 consecutive steps that were not finite"):
        run(tiny_config, tmp_path / "run", "--training.max_bad_steps", "3", "--training.checkpoint_every", "1")
    assert steps == [0, 1, 2, 3, 3, 3, 4, 4, 4]
    newest, damaged = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert newest is not None
    assert newest.name == "step-00000004"
    assert not damaged


def skipped(folder: Path) -> list[int]:
    """Return `skipped_steps` of every train line from step 6 on."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["skipped_steps"] for line in lines if line["kind"] == "train" and line["step"] >= 6]


@pytest.mark.slow
def test_loss_scaler_finds_its_scale_without_an_alarm(
    tiny_config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A gradient beyond the range under loss scaling is not an error: the scale decreases, and the step is skipped."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126, backoff_factor=2.0**-24, growth_interval=10**6)
    plain_init = Trainer.__init__

    def init(self: Trainer, **arguments: Any) -> None:
        arguments["accelerator"].scaler = scaler
        plain_init(self, **arguments)

    monkeypatch.setattr(Trainer, "__init__", init)
    out = run(tiny_config, tmp_path / "run", "--objective.adaptive_gan_weight", "false")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert not [line for line in lines if line["kind"] == "alarm"]
    train = [line for line in lines if line["kind"] == "train"]
    assert train[-1]["step"] == 6
    assert train[-1]["skipped_steps"] >= 1
    assert train[-1]["loss_scale"] < 2.0**126
    more = ("--objective.adaptive_gan_weight", "false", "--training.max_steps")
    run(tiny_config, out, *more, "7")
    assert skipped(out) == [train[-1]["skipped_steps"]] * 2  # resumes from the count in the checkpoint
    load = state_module.load_state
    monkeypatch.setattr(
        state_module, "load_state", lambda path: {k: v for k, v in load(path).items() if k != state_module.SKIPPED}
    )
    run(tiny_config, out, *more, "8")
    assert skipped(out)[-1] == 0  # an older checkpoint has no count
    assert all(math.isfinite(value) for line in train for value in line.values() if isinstance(value, float))


def test_message_names_only_non_finite_terms_and_samples() -> None:
    guard = Guard(Accelerator(cpu=True), [], limit=2)
    values = {"rec_loss": torch.tensor(1.0), "grad_norm": torch.tensor(math.inf), "kl_loss": torch.tensor(math.nan)}
    pixels = torch.zeros(2, 3, 4, 4)
    fakes = pixels.clone()
    fakes[0, 1, 2, 3] = -math.inf
    assert not guard.are_finite(values)
    assert guard.are_finite({"rec_loss": torch.tensor(1.0)})
    batch = type("Batch", (), {"keys": ["a", "b"], "pixel_values": pixels})()
    assert guard.describe(values, [batch], [fakes]) == "grad_norm, kl_loss not finite; samples a"


def test_skipped_step_restores_buffers() -> None:
    norm = nn.BatchNorm2d(2)
    guard = Guard(Accelerator(cpu=True), list(norm.buffers()), limit=2)
    norm(torch.randn(4, 2, 3, 3))
    guard.before_step()
    expected = {name: value.clone() for name, value in norm.named_buffers()}
    norm(torch.full((4, 2, 3, 3), math.nan))
    assert not norm.running_mean.isfinite().any()
    guard.undo()
    assert all(torch.equal(value, expected[name]) for name, value in norm.named_buffers())


@pytest.mark.slow
def test_failed_checkpoint_write_stops_the_run(
    tiny_config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = checkpoint.write_checkpoint
    good: dict[str, str] = {}

    def write(folder: Path, snapshot: Any) -> None:
        if snapshot.step > 3:
            raise OSError(5, "Input/output error", str(folder))
        plain(folder, snapshot)
        good.update({str(path): sha256(path) for path in folder.rglob("*") if path.is_file()})

    monkeypatch.setattr(checkpoint, "write_checkpoint", write)
    with pytest.raises(OSError, match="Input/output error"):
        run(tiny_config, tmp_path / "run")
    assert good
    assert {path: sha256(path) for path in good} == good


@pytest.mark.slow
def test_pending_checkpoint_is_completed_before_an_error_is_raised(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_step, plain_write = Trainer.train_step, Saver._write

    def step(self: Trainer, batches: Sequence[Batch]) -> Any:
        if self.step == 2:
            raise RunError("as after too many bad steps")
        return plain_step(self, batches)

    def slow_write(self: Saver, *arguments: Any) -> None:
        time.sleep(0.3)
        plain_write(self, *arguments)

    monkeypatch.setattr(Trainer, "train_step", step)
    monkeypatch.setattr(Saver, "_write", slow_write)
    with pytest.raises(RunError, match="too many bad steps"):
        run(tiny_config, tmp_path / "run", "--training.checkpoint_every", "1")
    newest, damaged = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert newest is not None
    assert (newest.name, damaged) == ("step-00000002", {})
