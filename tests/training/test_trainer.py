"""The training loop: its files, resuming, and learning."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from ldm_ae.core.errors import UserError
from ldm_ae.data import Batch
from ldm_ae.evaluation import psnr
from ldm_ae.models import load_autoencoder
from ldm_ae.training import Stopped, Trainer, newest_checkpoint
from ldm_ae.training.checkpoints.snapshot import HostCopy, Snapshot
from ldm_ae.training.steps import generator_step
from tests.training.common import files, make_batches, make_parts, run, whole

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_parser")]


@pytest.mark.slow
def test_run_directory_has_the_documented_files_and_is_reproducible(shared_run: Path, tmp_path: Path) -> None:
    out = shared_run
    assert {p.name for p in out.iterdir()} == {
        "config.yaml", "metrics.jsonl", "samples", "checkpoints", "model", "environment.json", "logs",
    }  # fmt: skip
    assert [p.name for p in sorted((out / "samples").iterdir())] == ["step-00000003.png", "step-00000006.png"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    train_lines = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in train_lines] == [2, 4, 6]
    wanted = {
        "rec_loss", "nll_loss", "kl_loss", "kl_per_latent", "generator_loss", "discriminator_loss", "adaptive_weight",
        "logits_real", "logits_fake", "discriminator_accuracy", "grad_norm", "discriminator_grad_norm", "learning_rate",
        "discriminator_learning_rate", "images_per_second", "peak_memory_bytes", "log_variance", "epoch",
    }  # fmt: skip
    assert wanted <= train_lines[-1].keys()
    assert "generator_loss" not in train_lines[0]  # the generator does not see the discriminator before step 2
    scores = [line for line in lines if line["kind"] == "validation"]
    assert [line["step"] for line in scores] == [3, 6]
    assert {"psnr", "ssim"} <= scores[0].keys()
    model = load_autoencoder(out)
    assert model.sample_size == 16
    assert model.latent_spec.scaling_factor != 1.0  # measured
    # config.yaml is the resolved configuration, and reruns the run.
    again = run(out / "config.yaml", tmp_path / "again")
    newest, _ = newest_checkpoint(out / "checkpoints")
    assert newest is not None
    expected = files(newest)
    assert files(again / "checkpoints" / newest.name) == expected


@pytest.mark.parametrize("stop", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT])
def test_resumed_run_equals_an_uninterrupted_one(
    shared_config: Path, shared_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: signal.Signals
) -> None:
    """Weights, EMA, discriminator, optimizers, random states: every byte of the last checkpoint."""
    expected = files(shared_run / "checkpoints" / "step-00000006")
    plain_step = Trainer.train_step

    def step_and_signal(self: Trainer, batches: Sequence[Batch]) -> object:
        result = plain_step(self, batches)
        if self.step == 4:
            os.kill(os.getpid(), stop)
        return result

    monkeypatch.setattr(Trainer, "train_step", step_and_signal)
    with pytest.raises(Stopped) as stopped:
        run(shared_config, tmp_path / "parts")
    assert stopped.value.status == 128 + stop
    monkeypatch.undo()
    assert (
        newest_checkpoint(tmp_path / "parts" / "checkpoints")[0] == tmp_path / "parts" / "checkpoints" / "step-00000004"
    )
    assert files(run(shared_config, tmp_path / "parts") / "checkpoints" / "step-00000006") == expected


@pytest.mark.slow
def test_next_update_waits_for_the_checkpoint_copy(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that takes longer than forward and backward passes gives the same bytes as a blocking save."""
    every = ("--training.checkpoint_every", "1", "--training.keep_checkpoints", "9")
    expected = files(
        run(tiny_config, tmp_path / "waits", *every, "--training.background_saves", "false") / "checkpoints"
    )
    begin = HostCopy.begin
    late: list[int] = []

    def slow_begin(self: HostCopy, snapshot: Snapshot) -> Callable[[], Snapshot]:
        finish = begin(self, snapshot)

        def slow_finish() -> Snapshot:
            time.sleep(0.5)
            late.append(snapshot.step)
            return finish()

        return slow_finish

    monkeypatch.setattr(HostCopy, "begin", slow_begin)
    found = files(run(tiny_config, tmp_path / "background", *every) / "checkpoints")
    assert late == [1, 2, 3, 4, 5, 6]
    assert found == expected


@pytest.mark.slow
def test_resume_neither_repeats_nor_skips_samples(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    plain_step = Trainer.train_step

    def note(self: Trainer, batches: Sequence[Batch]) -> object:
        seen.extend(key for batch in batches for key in batch.keys)
        return plain_step(self, batches)

    monkeypatch.setattr(Trainer, "train_step", note)
    more = ("--data.validation_images", "0", "--training.trackers", "[]", "--optimizer.schedule", "constant")
    run(tiny_config, tmp_path / "run", "--training.max_steps", "3", *more)
    assert len(set(seen)) == 12  # three steps of four images: the whole set, each once
    run(tiny_config, tmp_path / "run", "--training.max_steps", "6", *more)
    assert sorted(seen) == sorted(2 * list(set(seen)))
    assert seen[:12] != seen[12:]


def test_damaged_newest_checkpoint_is_named_and_skipped(
    shared_config: Path, shared_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(shared_run, tmp_path / "run"))
    expected = files(out / "checkpoints" / "step-00000006")
    state = out / "checkpoints" / "step-00000006" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"\x7f")
    run(shared_config, out)
    words = capsys.readouterr().err
    assert "skipping invalid checkpoint step-00000006" in words
    assert "resuming from step-00000003" in words
    assert files(out / "checkpoints" / "step-00000006") == expected


def test_resume_with_another_seed_is_refused(shared_config: Path, shared_run: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(shared_run, tmp_path / "run"))
    with pytest.raises(UserError, match="holds a run with another seed"):
        run(shared_config, out, "--seed", "5")


@pytest.mark.slow
def test_decoder_only_training_does_not_change_the_encoder(tiny_config: Path, tmp_path: Path) -> None:
    more = ["--objective.regularization_weights", "{}", "--training.trainable", "[decoder.*, post_quant_conv.*]"]
    out = run(tiny_config, tmp_path / "run", *more)
    torch.manual_seed(0)
    start = run(tiny_config, tmp_path / "start", "--training.max_steps", "1", "--optimizer.learning_rate", "1e-12")
    before, after = (load_autoencoder(p).net.state_dict() for p in (start, out))
    changed = {name.split(".")[0] for name in before if (before[name] - after[name]).abs().max() > 1e-6}
    assert changed == {"decoder", "post_quant_conv"}


def test_frozen_last_layer_needs_a_fixed_weight(tiny_config: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="adaptive_gan_weight is measured at the decoder's last layer"):
        run(tiny_config, tmp_path / "run", "--training.trainable", "[encoder.*]")


@pytest.mark.slow
def test_gradient_checkpointing_does_not_change_the_weights(
    shared_config: Path, shared_run: Path, tmp_path: Path
) -> None:
    expected = load_autoencoder(shared_run).net.state_dict()
    option = ("--training.gradient_checkpointing", "true")
    found = load_autoencoder(run(shared_config, tmp_path / "option", *option)).net.state_dict()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-6), name  # the same float32 operations, run twice


@pytest.mark.slow
def test_training_overfits_eight_images_to_30_db(accelerator: Accelerator) -> None:
    parts = make_parts(
        accelerator, discriminator=False, perceptual=None, reduction="mean", learned_log_variance=False,
        regularization_weights={"kl": 1e-8},
    )  # fmt: skip
    batch = whole(make_batches(1, 8))
    optimizer = torch.optim.Adam(parts.plain_autoencoder.parameters())
    steps = 250
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 5e-3 * min(1.0, (step + 1) / 20) * (1 - step / steps)
        generator_step(parts, [batch._replace(noise=torch.randn_like(batch.noise))], step)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        model = parts.plain_autoencoder.eval()
        reconstructions = model.decode(model.encode(batch.pixel_values).mode())
    assert psnr(reconstructions, batch.pixel_values).mean() > 30
