"""Regularizers and the hooks of discriminators, in the steps and in runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from ldm_ae.core.draws import AUGMENTATION, REGULARIZER, Draws
from ldm_ae.core.errors import UserError
from ldm_ae.regularizers import GaussianNoise, Identity
from ldm_ae.training import run as run_module
from ldm_ae.training.changes import check_identity
from ldm_ae.training.steps import discriminator_step, generator_step
from tests.training.common import assert_close, files, gradients, make_batches, make_parts, run, whole
from tests.training.doubles import TERMS, Backboned, Turn, turned

TOLERANCE = 1e-5  # float32 sums of a few thousand terms in another order
HOOKS: dict[str, Any] = {"regularization_weights": TERMS}


def test_losses_compare_reconstructions_with_the_target(accelerator: Accelerator) -> None:
    """The step's gradients equal those of one explicit graph: decode turned latents, compare with turned images."""
    parts = make_parts(
        accelerator, discriminator=Backboned(), regularizer=Turn(), adaptive_gan_weight=False, gan_weight=0.3, **HOOKS
    )  # fmt: skip
    batch = make_batches(1, 4)[0]
    model, turn, discriminator = parts.plain_autoencoder, parts.plain_pass.regularizer, parts.plain_discriminator
    assert isinstance(turn, Turn)
    assert discriminator is not None
    quarters = Draws(batch.seeds, REGULARIZER).integers(0, 4)
    assert len(set(quarters.tolist())) > 1
    posterior = model.encode(batch.pixel_values)
    x_hat = model.decode(turned(turn.gain * posterior.sample(noise=batch.noise), quarters))
    target = turned(batch.pixel_values, quarters)
    alignment = (turn.features(batch.pixel_values) - posterior.mean).square().sum() / 4
    gan = -discriminator(discriminator.augment(x_hat, Draws(batch.seeds, AUGMENTATION))).mean()
    kl = posterior.regularization()["kl"].mean()
    terms = parts.objective.reconstruction(x_hat, target)
    loss = terms.nll + 0.3 * gan + TERMS["kl"] * kl + TERMS["alignment"] * alignment
    named = {name: p for name, p in parts.plain_pass.named_parameters() if p.requires_grad}
    expected = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
    results, logs = generator_step(parts, [batch], step=0)
    assert_close(gradients(parts.plain_pass), expected, TOLERANCE)
    assert "regularizer.gain" in expected
    assert not any("features" in name for name in expected)
    assert torch.equal(results[0].target, target)
    assert logs["rec_loss"] == pytest.approx(terms.rec_loss.item(), rel=TOLERANCE)
    assert logs["alignment_loss"] == pytest.approx(alignment.item(), rel=TOLERANCE)
    assert not gradients(discriminator)


@pytest.mark.parametrize("count", [1, 2])
def test_augmentation_is_equal_for_real_and_fake_images(
    accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    parts = make_parts(accelerator, discriminator=Backboned(), regularizer=Turn(), **HOOKS)
    seen: list[Tensor] = []
    plain = Backboned.forward

    def record(self: Backboned, pixel_values: Tensor) -> Tensor:
        seen.append(pixel_values.detach().clone())
        return plain(self, pixel_values)

    monkeypatch.setattr(Backboned, "forward", record)
    batches = make_batches(count, 2)
    results, _ = generator_step(parts, batches, step=1)
    generators, seen = seen, []
    discriminator_step(parts, batches, results, step=1)  # an odd step: no R1, which would see the real images again
    assert len(generators) == count
    assert len(seen) == 2 * count
    augment = parts.plain_discriminator.augment  # type: ignore[union-attr]
    for i, (batch, result) in enumerate(zip(batches, results, strict=True)):
        expected = [augment(images, Draws(batch.seeds, AUGMENTATION)) for images in result]
        assert torch.equal(seen[2 * i], expected[0])
        assert torch.equal(seen[2 * i + 1], expected[1])
        # Without a graph for most parameters the first pass computes the same numbers in another order, maybe.
        assert torch.allclose(generators[i], expected[1], atol=1e-6)


def test_discriminator_penalty_is_added_and_logged(accelerator: Accelerator) -> None:
    batch = make_batches(1, 4)
    found = {}
    for step in (0, 1):
        parts = make_parts(accelerator, discriminator=Backboned(), **HOOKS | {"regularization_weights": {}})
        results, _ = generator_step(parts, batch, step)
        network = parts.plain_discriminator
        assert isinstance(network, Backboned)
        real, fake = (network.augment(images, batch[0].draws(AUGMENTATION)) for images in results[0])
        logits = network(real), network(fake)
        penalty = network.penalty(real, fake, logits, step)
        loss = parts.objective.config.adversarial.discriminator(*logits) + penalty
        named = {name: p for name, p in network.named_parameters() if p.requires_grad}
        expected = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
        logs = discriminator_step(parts, batch, results, step)
        assert logs is not None
        assert_close(gradients(network), expected, TOLERANCE)
        assert set(expected) == {"head.weight", "head.bias"}  # the frozen backbone gets none
        assert network.average_real == pytest.approx(0.1 * logits[0].mean().item(), rel=TOLERANCE)
        assert logs["discriminator_loss"] == pytest.approx((loss - penalty).item(), rel=TOLERANCE)
        found[step] = float(logs["discriminator_penalty"])
        assert found[step] == pytest.approx(penalty.item(), rel=TOLERANCE)
    assert found[0] > found[1] > 0  # with R1 and without


def test_accumulation_equals_one_large_batch(accelerator: Accelerator) -> None:
    found = []
    for batches in (make_batches(4, 2), [whole(make_batches(4, 2))]):
        parts = make_parts(accelerator, discriminator=Backboned(), regularizer=Turn(), **HOOKS)
        logs: dict[str, Tensor] = {}
        for step in (0, 1):  # the second has LeCam's averages of the first
            parts.plain_pass.zero_grad()
            assert parts.plain_discriminator is not None
            parts.plain_discriminator.zero_grad()
            results, logs = generator_step(parts, batches, step)
            logs |= discriminator_step(parts, batches, results, step) or {}
        assert parts.plain_discriminator.average_real != 0
        found.append((
            gradients(parts.plain_pass), gradients(parts.plain_discriminator), logs,
            {name: buffer.clone() for name, buffer in parts.plain_discriminator.named_buffers()},
        ))  # fmt: skip
    (generator, discriminator, logs, buffers), expected = found
    assert "regularizer.gain" in generator
    assert_close(generator, expected[0], TOLERANCE)
    assert_close(discriminator, expected[1], TOLERANCE)
    for name, value in (expected[2] | expected[3]).items():
        assert torch.allclose((logs | buffers)[name], value, rtol=1e-5, atol=1e-7), name


# ----------------------------------------------------------------------------------------------------------------- runs


@contextmanager
def doubles(monkeypatch: pytest.MonkeyPatch, **parts: Any) -> Iterator[None]:
    """Runs have these parts in place of the configured ones."""
    plain = run_module.build_config

    def build(*arguments: Any, **more: Any) -> Any:
        built = plain(*arguments, **more)
        weights = built.objective.regularization_weights | (
            {} if not isinstance(parts.get("regularizer"), Turn) else TERMS
        )
        objective = dataclasses.replace(built.objective, regularization_weights=weights)
        fresh = {name: type(part)() for name, part in parts.items()}
        return dataclasses.replace(built, objective=objective, **fresh)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "build_config", build)
        yield


@pytest.mark.slow
def test_resumed_run_equals_uninterrupted_and_saves_only_trained_parts(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constant = ("--optimizer.schedule", "constant")
    with doubles(monkeypatch, regularizer=Turn(), discriminator=Backboned()):
        expected = run(tiny_config, tmp_path / "whole", *constant)
        run(tiny_config, tmp_path / "parts", *constant, "--training.max_steps", "3")
        run(tiny_config, tmp_path / "parts", *constant)
        last = expected / "checkpoints" / "step-00000006"
        assert files(tmp_path / "parts" / "checkpoints" / last.name) == files(last)
        discriminator = load_file(last / "discriminator.safetensors")
        assert set(discriminator) == {"head.weight", "head.bias", "average_real", "average_fake"}
        assert discriminator["average_real"] != 0
        regularizer = load_file(last / "regularizer.safetensors")
        assert set(regularizer) == {"gain"}
        assert (regularizer["gain"] != 1.5).all()  # it has learned
        manifest = json.loads((last / "MANIFEST.json").read_text())["files"]
        assert {name for name in manifest if name.endswith("safetensors") and "/" not in name} == {
            "discriminator.safetensors", "objective.safetensors", "regularizer.safetensors", "state.safetensors"
        }  # fmt: skip
        state = json.loads((last / "state.json").read_text())
        assert len(state["optimizers"][1]["param_groups"][0]["params"]) == 2  # the head's weight and bias
        lines = [json.loads(line) for line in (expected / "metrics.jsonl").read_text().splitlines()]
        assert any("alignment_loss" in line and "discriminator_penalty" in line for line in lines)
    with pytest.raises(UserError, match=r"holds a run with another regularizer \(Turn, now Identity\)"):
        run(tiny_config, expected)


@pytest.mark.slow
def test_run_without_a_recorded_regularizer_resumes_with_identity(tiny_config: Path, tmp_path: Path) -> None:
    out = run(tiny_config, tmp_path / "run", "--training.max_steps", "1")
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config.pop("regularizer") == {"class_path": "ldm_ae.regularizers.Identity"}
    (out / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"holds a run with another regularizer \(Identity, now GaussianNoise\)"):
        run(out / "config.yaml", out, "--regularizer", "ldm_ae.regularizers.GaussianNoise")
    run(out / "config.yaml", out, "--training.max_steps", "2")
    assert (out / "checkpoints" / "step-00000002").is_dir()


def test_unrecorded_identity_settings_mean_the_default(tmp_path: Path) -> None:
    check_identity(tmp_path, {}, {})
    check_identity(tmp_path, {"regularizer": "Turn"}, {"regularizer": "Turn"})
    for saved, now in (({}, {"regularizer": "Turn"}), ({"regularizer": "Turn"}, {})):
        with pytest.raises(UserError, match="another regularizer"):
            check_identity(tmp_path, saved, now)


@pytest.mark.slow
def test_regularizer_noise_is_used_only_in_training(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With almost no learning, noise changes the training losses and not the validation scores."""
    found = {}
    for regularizer in (Identity(), GaussianNoise()):
        with doubles(monkeypatch, regularizer=regularizer):
            out = run(
                tiny_config, tmp_path / type(regularizer).__name__, "--training.max_steps", "1",
                "--optimizer.learning_rate", "1e-12",
            )  # fmt: skip
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        found[type(regularizer)] = {line["kind"]: line | {"seconds": None} for line in lines}
    assert found[GaussianNoise]["validation"] == found[Identity]["validation"]
    assert found[GaussianNoise]["train"]["rec_loss"] != found[Identity]["train"]["rec_loss"]
