"""A run of several phases: what carries over, resuming in any phase, and errors in a phase that is to come."""

from __future__ import annotations

import json
import os
import shutil
import signal
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from ldm_ae.core.errors import UserError
from ldm_ae.data import Batch
from ldm_ae.models import load_autoencoder
from ldm_ae.training import Stopped, Trainer, newest_checkpoint
from ldm_ae.training.averages.posthoc import StoredAverages
from ldm_ae.training.configuration.parsing import config_parser
from ldm_ae.training.configuration.phases import each_phase
from ldm_ae.training.run import list_phases, parse_config, train
from tests.pictures import write_class_folders
from tests.training.common import TINY, files, run
from tests.training.processes import run_processes

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_parser")]

PATCHGAN = {"class_path": "patchgan", "init_args": {"n_layers": 1, "ndf": 8, "norm": "group"}}
PHASES: list[dict[str, Any]] = [
    {"training": {"max_steps": 3}, "discriminator": None, "objective": {"learned_log_variance": False}},
    {
        "training": {"max_steps": 4, "trainable": ["decoder.*", "post_quant_conv.*"], "batch_size": 1},
        "data": {"resolution": 24}, "regularizer": {"class_path": "noise", "init_args": {"gamma": 1.0}},
        "objective": {"regularization_weights": {}}, "optimizer": {"schedule": "constant", "learning_rate": 3e-4},
    },
    {"training": {"max_steps": 2, "trainable": ["decoder.*"]}, "objective": {"regularization_weights": {}}},
]  # fmt: skip
"""Nine steps: everything, then the decoder alone on larger images with noise and a discriminator, which continues."""


def phased(images: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(json.dumps(TINY))
    config["data"]["train"] = str(images)
    config["discriminator"] = PATCHGAN
    config["objective"]["discriminator_start"] = config["objective"]["discriminator_warmup_steps"] = 0
    config["training"] |= {"checkpoint_every": 2, "sample_every": 2, "validate_every": 2, "log_every": 1}
    return config | {"phases": json.loads(json.dumps(PHASES))}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phases")
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(phased(write_class_folders(folder / "images"))))
    return path


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Path:
    """A run of all phases without an interruption. Tests read it, or change a copy."""
    return run(recipe, recipe.with_name("whole"))


def lines(out: Path, *kinds: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] in kinds]


def untimed(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the machine's load."""
    timed = ("seconds", "images_per_second", "peak_memory_bytes")
    return [{key: value for key, value in line.items() if key not in timed}
            for line in lines(out, "train", "validation", "finished")]  # fmt: skip


def results(out: Path) -> dict[str, str]:
    """Digests of everything that a run has computed."""
    return {name: digest for part in ("checkpoints", "model", "phases", "samples")
            for name, digest in ((f"{part}/{n}", d) for n, d in files(out / part).items())}  # fmt: skip


def tensors_differ(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> set[str]:
    assert first.keys() == second.keys()
    return {name for name in first if not torch.equal(first[name], second[name])}


def test_run_directory_of_several_phases(whole: Path) -> None:
    assert {path.name for path in whole.iterdir()} == {
        "config.yaml", "metrics.jsonl", "samples", "checkpoints", "model", "environment.json", "logs", "phases",
    }  # fmt: skip
    assert sorted(path.name for path in (whole / "phases").iterdir()) == ["1", "2"]
    assert [(line["step"], line["phase"]) for line in lines(whole, "train")] == [
        (1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2), (7, 2), (8, 3), (9, 3),
    ]  # fmt: skip
    assert sorted(path.name for path in (whole / "samples").iterdir()) == [
        f"step-0000000{step}.png" for step in (2, 3, 5, 7, 9)
    ]
    assert {path.name for path in (whole / "checkpoints").glob("step-*")} >= {"step-00000007", "step-00000009"}
    assert lines(whole, "finished")[-1]["step"] == 9
    assert [load_autoencoder(path).sample_size for path in (whole / "phases/1", whole / "phases/2", whole)] == [
        16, 24, 16,
    ]  # fmt: skip


def test_each_phase_trains_its_own_parameters(whole: Path) -> None:
    first, second, last = (load_autoencoder(path).net.state_dict()
                           for path in (whole / "phases/1", whole / "phases/2", whole))  # fmt: skip
    assert {name.split(".")[0] for name in tensors_differ(first, second)} == {"decoder", "post_quant_conv"}
    assert {name.split(".")[0] for name in tensors_differ(second, last)} == {"decoder"}
    scales = {load_autoencoder(path).latent_spec.scaling_factor for path in (whole / "phases/1", whole)}
    assert len(scales) == 1  # the encoder is that of the first phase, and so is its scale
    assert scales != {1.0}


def test_schedules_and_losses_are_those_of_each_phase(whole: Path) -> None:
    train = {line["step"]: line for line in lines(whole, "train")}
    assert [step for step, line in train.items() if "discriminator_loss" in line] == [4, 5, 6, 7, 8, 9]
    # Warm-up over two steps, in every phase anew.
    assert [train[step]["learning_rate"] for step in (1, 2, 4, 5, 6)] == pytest.approx(
        [1e-4 / 3, 2e-4 / 3, 1e-4, 2e-4, 3e-4]
    )
    assert train[4]["epoch"] == pytest.approx(2 / 9)  # two images of nine: the second phase draws from the start
    assert [line["step"] for line in lines(whole, "validation")] == [2, 3, 5, 7, 9]


def test_phase_equals_a_run_that_starts_from_the_model_before(recipe: Path, tmp_path: Path) -> None:
    """With the seed of the phase, and without a discriminator, whose weights are drawn after those of the model."""
    parser = config_parser()
    config = phased(recipe.parent / "images") | {"phases": PHASES[:2], "discriminator": None}
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(config))
    both = run(tmp_path / "both.yaml", tmp_path / "both")
    second = list_phases(parse_config(["--config", str(tmp_path / "both.yaml"), "--out", "x"], parser), parser)[1]
    (tmp_path / "second.yaml").write_text(yaml.safe_dump({k: v for k, v in config.items() if k != "phases"}))
    (tmp_path / "phase.yaml").write_text(yaml.safe_dump(PHASES[1]))
    alone = run(tmp_path / "second.yaml", tmp_path / "alone", "--config", str(tmp_path / "phase.yaml"),
                "--seed", str(second.seed), "--model.pretrained", str(both / "phases" / "1"))  # fmt: skip
    expected, found = (load_autoencoder(path).net for path in (alone, both))
    assert tensors_differ(expected.state_dict(), found.state_dict()) == set()
    assert expected.config["scaling_factor"] == found.config["scaling_factor"]


def test_discriminator_and_its_optimizer_continue(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """At a learning rate of nearly 0 the discriminator of the third phase is that of the second."""
    out = run(recipe, tmp_path / "run", "--phases.3.discriminator_optimizer.learning_rate", "1e-30",
              "--training.keep_checkpoints", "9")  # fmt: skip
    said = capsys.readouterr().err
    assert "phase 3 of 3: steps 8 to 9, from the model of" in said
    assert "the learned log-variance and the discriminator and the discriminator's optimizer continue" in said
    before, after = (out / "checkpoints" / f"step-0000000{step}" for step in (7, 9))
    weights = [load_file(path / "discriminator.safetensors") for path in (before, after)]
    assert tensors_differ(*weights) == set()
    steps = [json.loads((path / "state.json").read_text())["optimizers"][1] for path in (before, after)]
    assert len(steps[0]["state"]) == len(steps[1]["state"]) > 0
    moments = [load_file(path / "state.safetensors") for path in (before, after)]
    counted = [{float(value) for key, value in found.items() if "optimizers/1" in key and key.endswith("step")}
               for found in moments]  # fmt: skip
    assert counted == [{4.0}, {6.0}]


@pytest.mark.parametrize("step", [2, 3, 5, 7])
def test_resumed_run_equals_an_uninterrupted_one(
    whole: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Killed without a save, within a phase and at its end; the configuration that a run records resumes it."""

    def step_and_die(self: Trainer, batches: Sequence[Batch]) -> object:
        if self.run_step == step:
            raise RuntimeError("killed")
        return plain_step(self, batches)

    plain_step = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", step_and_die)
    with pytest.raises(RuntimeError, match="killed"):
        run(recipe, tmp_path / "run")
    monkeypatch.undo()
    out = run(whole / "config.yaml", tmp_path / "run")
    assert results(out) == results(whole)
    assert untimed(out) == untimed(whole)


def test_run_killed_before_a_phase_has_written_its_model_resumes(
    whole: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(self: Trainer) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(Trainer, "export", die)
    with pytest.raises(RuntimeError, match="killed"):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "phases").exists()
    monkeypatch.undo()
    assert results(run(recipe, tmp_path / "run")) == results(whole)


@pytest.mark.parametrize("step", [3, 5])
def test_signal_stops_the_run_in_a_phase_and_at_its_end(
    whole: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    def step_and_signal(self: Trainer, batches: Sequence[Batch]) -> object:
        result = plain_step(self, batches)
        if self.run_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    plain_step = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", step_and_signal)
    with pytest.raises(Stopped):
        run(recipe, tmp_path / "run")
    monkeypatch.undo()
    newest, _ = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert newest is not None
    assert newest.name == f"step-0000000{step}"
    out = run(recipe, tmp_path / "run")
    assert (
        results(out)["model/diffusion_pytorch_model.safetensors"]
        == (results(whole)["model/diffusion_pytorch_model.safetensors"])
    )
    assert files(out / "checkpoints/step-00000009") == files(whole / "checkpoints/step-00000009")


def test_networks_of_a_phase_are_freed_before_the_next_one(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the checks before the first step, too."""
    made: list[weakref.ref[Trainer]] = []
    alive: list[int] = []

    def make(self: Trainer, **parts: Any) -> None:
        alive.append(sum(reference() is not None for reference in made))
        made.append(weakref.ref(self))
        plain_init(self, **parts)

    plain_init = Trainer.__init__
    monkeypatch.setattr(Trainer, "__init__", make)
    run(recipe, tmp_path / "run", "--training.max_steps", "1", "--data.validation_images", "0")
    assert alive == [0, 0, 0, 0, 0]  # the second and third phase, checked; then all three, trained


def test_power_averages_are_those_of_the_last_phase(recipe: Path, tmp_path: Path) -> None:
    out = run(recipe, tmp_path / "run", "--training.power_ema", "true", "--training.power_ema_every", "1",
              "--training.ema_decay", "null")  # fmt: skip
    assert sorted(path.name for path in (out / "averages").iterdir()) == ["phase-1", "phase-2", "phase-3"]
    stored = StoredAverages(out)
    averaged, exported = stored.weights(stored.lengths[0]), load_autoencoder(out).net.state_dict()
    assert stored.phase == 3
    for name, tensor in averaged.items():
        torch.testing.assert_close(tensor, exported[name])


def test_phase_is_added_to_a_finished_run(whole: Path, recipe: Path, tmp_path: Path) -> None:
    config = yaml.safe_load(recipe.read_text())
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(config | {"phases": config["phases"][:2]}))
    out = run(tmp_path / "two.yaml", tmp_path / "run")
    assert load_autoencoder(out).sample_size == 24
    assert results(run(recipe, out)) == results(whole)


def test_changed_settings_hold_in_phases_that_are_not_finished(
    whole: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "run", symlinks=True))
    again = run(recipe, out)
    assert "--phases.3.training.max_steps 4, or any number above 2" in capsys.readouterr().err
    assert results(again) == results(whole)
    run(recipe, out, "--training.max_grad_norm", "2.0", "--phases.3.training.max_steps", "3")
    changed = {line["setting"]: (line["step"], line["to"]) for line in lines(out, "change")}
    assert changed == {"phases.3.training.max_grad_norm": (9, "2.0"), "phases.3.training.max_steps": (9, "3")}
    said = capsys.readouterr().err
    assert "phase 1 is finished, so these have no effect: phases.1.training.max_grad_norm" in said
    assert "finished:  step 10 of 10; 1 steps of phase 3 of 3" in said
    recorded = each_phase(yaml.safe_load((out / "config.yaml").read_text()))
    assert [phase["training"]["max_grad_norm"] for phase in recorded] == [1.0, 1.0, 2.0]
    assert [phase["training"]["max_steps"] for phase in recorded] == [3, 4, 3]


def test_run_in_a_later_phase_is_not_continued_without_it(whole: Path, recipe: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "run", symlinks=True))
    before = files(out)
    with pytest.raises(UserError, match="is in phase 3 of its run, and the configuration has no phases"):
        run(recipe, out, "--phases", "[]")
    with pytest.raises(UserError, match=r"phase 3 of 3: .* with another trainable \(.*decoder\.\*.*, now .*\*"):
        run(recipe, out, "--phases.3.training.trainable", "['*']")
    shutil.move(out / "phases" / "2", out / "elsewhere")
    with pytest.raises(UserError, match="phases/2, the model that this phase starts from, is missing"):
        run(recipe, out, "--phases.3.training.max_steps", "3")
    shutil.move(out / "elsewhere", out / "phases" / "2")
    assert files(out) == before


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("3.data.resolution", "15", "phase 3 of 3: "),
        ("2.training.trainable", "[decoderx.*]", r"phase 2 of 3: trainable: 'decoderx\.\*' matches no parameter"),
        ("2.training.trainable", "[encoder.*]", "phase 2 of 3: the adaptive weight|phase 2 of 3: .*adaptive"),
        (
            "3.objective.regularization_weights",
            "{klx: 1.0}",
            "phase 3 of 3: objective.regularization_weights: expected",
        ),
        ("2.data.train", "nowhere", "phase 2 of 3: .*nowhere"),
        ("2.optimizer.options", "{beta: 1.0}", "phase 2 of 3: torch.optim.Adam does not accept these options"),
        ("3.training.max_steps", "0", "phase 3 of 3: training.max_steps is 0; it must be at least 1"),
        ("3.discriminator.n_layers", "5", "phase 3 of 3: the discriminator .* does not accept images of 16x16"),
    ],
)
def test_error_in_a_later_phase_is_reported_before_the_first_step(
    recipe: Path, tmp_path: Path, option: str, value: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        run(recipe, tmp_path / "run", f"--phases.{option}", value)
    assert not (tmp_path / "run").exists()


def train_phases(rank: int, recipe: str, out: str, die_at: int) -> None:
    def step_and_die(self: Trainer, batches: Sequence[Batch]) -> object:
        if self.run_step == die_at:
            raise RuntimeError("killed")
        return plain_step(self, batches)

    plain_step = Trainer.train_step
    Trainer.train_step = step_and_die  # type: ignore[method-assign]
    if die_at >= 0:
        with pytest.raises(RuntimeError, match="killed"):
            train(["--config", recipe, "--out", out])
    else:
        train(["--config", recipe, "--out", out])


def test_two_processes_train_phases_and_resume(recipe: Path, tmp_path: Path) -> None:
    expected, out = tmp_path / "expected", tmp_path / "run"
    run_processes(train_phases, 2, str(recipe), str(expected), -1)
    run_processes(train_phases, 2, str(recipe), str(out), 5)
    run_processes(train_phases, 2, str(recipe), str(out), -1)
    assert results(out) == results(expected)
    assert untimed(out) == untimed(expected)
    one = run(recipe, tmp_path / "one", "--training.accumulation", "4", "--phases.2.training.accumulation", "4")
    losses = [[line["rec_loss"] for line in lines(folder, "train")] for folder in (expected, one)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # Adam divides sums in another order by their size
