"""Runs and phases that end by time, with a clock that each training step advances by three seconds."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

from ldm_ae.core.errors import Stopped, UserError
from ldm_ae.data import Batch
from ldm_ae.models import load_autoencoder
from ldm_ae.training import time_limit
from ldm_ae.training.checkpoints.checkpoint import newest_checkpoint
from ldm_ae.training.optimizers import OptimizerConfig
from ldm_ae.training.trainer import Trainer
from tests.training.common import files, run

pytestmark = pytest.mark.usefixtures("one_parser")

STEP_SECONDS = 3
TIMED = (
    "--training.max_steps", "1000", "--training.max_minutes", "0.4", "--training.log_every", "1",
    "--optimizer.schedule", "constant", "--optimizer.warmup_steps", "0", "--optimizer.cooldown_minutes", "0.2",
)  # fmt: skip
"""Eight steps, of which the last four are the cooldown."""


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Set the clock; return a function that moves it as between two processes, and sets the step that is stopped."""
    now, stops, plain_step = [1000.0], [0], Trainer.train_step

    def step(self: Trainer, batches: Sequence[Batch]) -> object:
        now[0] += STEP_SECONDS
        if self.step + 1 == stops[0]:
            os.kill(os.getpid(), signal.SIGINT)
        return plain_step(self, batches)

    def set_stop(number: int) -> None:
        now[0] += 500
        stops[0] = number

    monkeypatch.setattr(Trainer, "train_step", step)
    monkeypatch.setattr(time_limit.TimeLimit.__init__, "__defaults__", (lambda: now[0],))
    return set_stop


def learning_rates(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["learning_rate"] / 1e-4 for line in lines if line["kind"] == "train"]


def test_time_ends_a_run_after_a_cooldown_as_its_last_step_does(
    tiny_config: Path, tmp_path: Path, stop_at: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(tiny_config, tmp_path / "run", *TIMED)
    # A step uses the time at the end of the step before: 21, 18, ... seconds of the cooldown's 12 are left.
    assert learning_rates(out) == pytest.approx([1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    assert "step 8 after 0.4 minutes" in capsys.readouterr().err
    newest, _ = newest_checkpoint(out / "checkpoints")
    assert newest is not None
    assert newest.name == "step-00000008"
    assert (out / "samples").is_dir()
    assert load_autoencoder(out).latent_spec.scaling_factor != 1.0  # measured, as at the end of any run
    kinds = [json.loads(line)["kind"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert kinds[-2:] == ["validation", "finished"]

    stop_at(0)
    before = (out / "metrics.jsonl").read_text()
    run(tiny_config, out, *TIMED)
    assert (out / "metrics.jsonl").read_text() == before
    message = capsys.readouterr().err
    assert "nothing is left to train" in message
    assert "--training.max_minutes 0.8" in message
    assert "resuming" not in message


@pytest.mark.slow
def test_resumed_run_counts_the_minutes_before(
    tiny_config: Path, tmp_path: Path, stop_at: Callable[[int], None]
) -> None:
    whole = run(tiny_config, tmp_path / "whole", *TIMED)
    stop_at(6)
    with pytest.raises(Stopped):
        run(tiny_config, tmp_path / "parts", *TIMED)
    stop_at(0)
    parts = run(tiny_config, tmp_path / "parts", *TIMED)
    last = Path("checkpoints", "step-00000008")
    assert files(parts / last) == files(whole / last)  # the same learning rates, and all else


@pytest.mark.slow
def test_each_phase_has_its_own_minutes(tiny_config: Path, tmp_path: Path, stop_at: Callable[[int], None]) -> None:
    config = yaml.safe_load(tiny_config.read_text())
    config["phases"] = [{"training": {"max_minutes": 0.1}, "optimizer": {"cooldown_minutes": 0.0}}, {}]
    tiny_config.write_text(yaml.safe_dump(config))
    # The options would override the phases.
    timed = [*TIMED[:2], "--training.log_every", "1", *TIMED[6:10]]
    second = ["--phases.2.training.max_minutes", "0.2", "--phases.2.optimizer.cooldown_minutes", "0.2"]
    stop_at(1)
    with pytest.raises(Stopped):
        run(tiny_config, tmp_path / "run", *timed, *second)
    stop_at(0)
    out = run(tiny_config, tmp_path / "run", *timed, *second)
    assert learning_rates(out) == pytest.approx([1, 1, 1, 0.75, 0.5, 0.25])
    stop_at(0)
    run(tiny_config, tmp_path / "run", *timed, *second)
    assert learning_rates(out) == pytest.approx([1, 1, 1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize(("options", "words"), [
    ({"schedule": "cosine"}, "optimizer.schedule cosine counts steps, but training.max_minutes ends the run"),
    ({"cooldown_steps": 3}, "optimizer.cooldown_steps 3 counts steps, but training.max_minutes ends the run"),
    ({"cooldown_minutes": 5}, "optimizer.cooldown_minutes is 5; it must be at most training.max_minutes, 3"),
])  # fmt: skip
def test_schedules_that_do_not_fit_a_time_are_refused(options: dict[str, object], words: str) -> None:
    config = OptimizerConfig(**options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=words):
        config.check_time("optimizer", 3.0)
    with pytest.raises(UserError, match="cooldown_minutes has no effect without training"):
        OptimizerConfig(cooldown_minutes=1).check_time("optimizer", None)
