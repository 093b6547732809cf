"""Adaptive weights of a regularizer's terms, against `autograd.grad` through one whole graph."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn

from ldm_ae.core.draws import AUGMENTATION, REGULARIZER
from ldm_ae.core.errors import UserError
from ldm_ae.losses import ObjectiveConfig
from ldm_ae.models import RAEAutoencoder
from ldm_ae.training.config import TrainingConfig
from ldm_ae.training.gradients import ADAPTIVE_MAX, gradient_ratio
from ldm_ae.training.losses import TrainingLosses
from ldm_ae.training.requirements import check_capabilities
from ldm_ae.training.step_parts import MicroBatch, StepParts
from ldm_ae.training.steps import generator_step
from tests.training.common import (
    assert_close,
    files,
    gradients,
    make_batches,
    make_parts,
    run,
    small_model,
    whole,
)
from tests.training.doubles import ADAPTIVE, Adaptive, Backboned, Turn

TOLERANCE = 1e-5  # float32 sums of a few thousand terms in another order

Setting = dict[str, Any]
SETTINGS: dict[str, Callable[[], Setting]] = {
    "no discriminator": lambda: {"discriminator": False},
    "adaptive GAN": lambda: {"discriminator": Backboned(), "gan_weight": 0.8},
    "fixed GAN": lambda: {"discriminator": Backboned(), "gan_weight": 0.3, "adaptive_gan_weight": False},
    "means": lambda: {"discriminator": False, "reduction": "mean"},
}


def adaptive_parts(accelerator: Accelerator, setting: str, **more: Any) -> StepParts:
    options = {"regularizer": Adaptive(), "regularization_weights": ADAPTIVE} | SETTINGS[setting]() | more
    return make_parts(accelerator, **options)


def textbook(parts: StepParts, batch: MicroBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One graph; every norm by an `autograd.grad` through all of it; one sum; one backward pass."""
    model, objective, discriminator = parts.plain_autoencoder, parts.objective, parts.plain_discriminator
    posterior, latents = model.draw(batch.pixel_values, batch.noise)
    found = parts.plain_pass.regularizer(posterior, latents, batch.pixel_values, batch.draws(REGULARIZER))
    latents, target, terms = found.latents, found.target, found.terms
    x_hat = model.decode(latents)
    sent = nll = objective.reconstruction(x_hat, target).nll
    if discriminator is not None:
        gan = -discriminator(discriminator.augment(x_hat, batch.draws(AUGMENTATION))).mean()
        weight: float | Tensor = objective.config.gan_weight
        if objective.config.adaptive_gan_weight:
            weight = weight * ratio(nll, gan, model.last_layer)
        sent = nll + weight * gan
    elements = latents[0].numel() if objective.config.reduction == "mean" else 1
    weights, total, factors = objective.config.regularization_weights, sent, {}
    for name, term in (posterior.regularization() | terms).items():
        mean = term.mean() / elements
        if name in parts.adaptive_terms:
            factors[f"{name}_adaptive_weight"] = ratio(sent, mean, model.net.encoder.conv_out.weight)
        total = total + weights[name] * factors.get(f"{name}_adaptive_weight", 1.0) * mean
    named = named_parameters(parts)
    return dict(zip(named, torch.autograd.grad(total, list(named.values())), strict=True)), factors


def ratio(reference: Tensor, loss: Tensor, layer: nn.Parameter) -> Tensor:
    norms = [torch.autograd.grad(each, layer, retain_graph=True)[0].norm() for each in (reference, loss)]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()


def named_parameters(parts: StepParts) -> dict[str, nn.Parameter]:
    named = dict(parts.plain_pass.named_parameters())
    named |= {f"objective.{name}": parameter for name, parameter in parts.objective.named_parameters()}
    return {name: parameter for name, parameter in named.items() if parameter.requires_grad}


def all_gradients(parts: StepParts) -> dict[str, Tensor]:
    return gradients(parts.plain_pass) | {f"objective.{k}": v for k, v in gradients(parts.objective).items()}


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("setting", SETTINGS)
def test_gradients_equal_the_textbook_way(accelerator: Accelerator, setting: str, count: int) -> None:
    """Also with accumulation: the weights belong to all micro-batches together."""
    parts = adaptive_parts(accelerator, setting)
    batches = make_batches(count, 2)
    expected, factors = textbook(parts, whole(batches))
    results, logs = generator_step(parts, batches, step=0)
    assert set(factors) == {"alignment_adaptive_weight", "size_adaptive_weight"}
    for name, factor in factors.items():
        assert logs[name] == pytest.approx(float(factor), rel=TOLERANCE)
        assert 1e-3 < factor < 0.9 * ADAPTIVE_MAX  # the comparison would be empty at the clamp
    assert_close(all_gradients(parts), expected, TOLERANCE)
    assert "regularizer.gain" in expected
    assert parts.plain_discriminator is None or not gradients(parts.plain_discriminator)
    assert [len(result.reconstructions) for result in results] == [2] * count
    assert not any(result.reconstructions.requires_grad for result in results)


def test_logs_of_accumulation_equal_those_of_one_batch(accelerator: Accelerator) -> None:
    found = []
    for batches in (make_batches(4, 2), [whole(make_batches(4, 2))]):
        _, logs = generator_step(adaptive_parts(accelerator, "adaptive GAN"), batches, step=0)
        found.append(logs)
    assert found[0].keys() == found[1].keys()
    assert {"adaptive_weight", "generator_loss", "alignment_loss", "size_adaptive_weight"} <= found[0].keys()
    for name, value in found[1].items():
        assert torch.allclose(found[0][name], value, rtol=1e-5, atol=1e-7), name


def test_own_loop_gets_the_same_gradients(accelerator: Accelerator) -> None:
    """From one scalar, which may be scaled; nothing is left in `.grad` before its backward pass."""
    parts = adaptive_parts(accelerator, "adaptive GAN")
    twin = adaptive_parts(accelerator, "adaptive GAN")
    losses = TrainingLosses(
        twin.plain_autoencoder, twin.objective.config, discriminator=twin.plain_discriminator,
        regularizer=twin.plain_pass.regularizer,
    )  # fmt: skip
    found = losses.generator_loss(make_batches(1, 4)[0].pixel_values, step=0)
    assert not gradients(losses)
    (found.loss / 2).backward()
    _, logs = generator_step(parts, [found.batch], step=0)
    expected = {f"training_pass.{k}": v / 2 for k, v in gradients(parts.plain_pass).items()}
    expected |= {f"objective.{k}": v / 2 for k, v in gradients(parts.objective).items()}
    assert_close(gradients(losses), expected, TOLERANCE)
    assert found.logs["size_adaptive_weight"] == pytest.approx(float(logs["size_adaptive_weight"]), rel=TOLERANCE)
    weights = found.logs | {"kl_adaptive_weight": torch.tensor(1.0)}
    value = weights["nll_loss"] + 0.8 * weights["adaptive_weight"] * weights["generator_loss"]
    value += sum(w * weights[f"{name}_adaptive_weight"] * weights[f"{name}_loss"] for name, w in ADAPTIVE.items())
    assert found.loss.item() == pytest.approx(float(value), rel=1e-4)  # a sum of terms of both signs


@pytest.mark.parametrize("count", [1, 3])
def test_each_part_is_passed_once(accelerator: Accelerator, count: int) -> None:
    """Encoder, decoder and discriminator: forward and backward passes of a step. With accumulation, the encoder's
    forward pass comes once more, for the weights belong to all micro-batches."""
    parts = adaptive_parts(accelerator, "fixed GAN")
    seen: list[str] = []
    net = parts.plain_autoencoder.net
    for name, module in (("encoder", net.encoder.conv_in), ("decoder", net.decoder.conv_in)):
        module.register_forward_hook(lambda _m, _i, _o, name=name: seen.append(f"{name} forward"))
        module.weight.register_hook(lambda _, name=name: seen.append(f"{name} backward"))
    generator_step(parts, make_batches(count, 2), step=0)
    counts = {name: seen.count(name) for name in seen}
    again = count if count > 1 else 0
    assert counts["encoder forward"] == count + again
    assert counts["decoder forward"] == count
    assert counts["encoder backward"] == count


def test_terms_without_a_weight_are_not_measured(accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the step is that of a regularizer without adaptive terms, bit for bit."""

    def fail(*_: object) -> None:
        raise AssertionError("measured")

    found = []
    for regularizer in (Adaptive(), Turn()):
        with monkeypatch.context() as patch:
            patch.setattr("ldm_ae.training.adaptive_terms.through_decoder", fail)
            weights = {"kl": 1e-4, **({"alignment": 0.0} if isinstance(regularizer, Adaptive) else {})}
            parts = adaptive_parts(
                accelerator, "adaptive GAN", regularizer=regularizer, regularization_weights=weights
            )  # fmt: skip
            _, logs = generator_step(parts, make_batches(2, 2), step=0)
            assert "alignment_adaptive_weight" not in logs
            found.append(all_gradients(parts))
    found[1].setdefault("regularizer.gain", found[0]["regularizer.gain"])
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


def test_ratio_is_clamped() -> None:
    assert gradient_ratio(torch.tensor(1e3), torch.tensor(1e-9)) == ADAPTIVE_MAX
    assert gradient_ratio(torch.tensor(1e3), torch.tensor(1e3)) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("count", [1, 2])
def test_half_precision_gives_close_gradients(
    make_accelerator: Callable[[str], Accelerator], precision: str, count: int
) -> None:
    batches = make_batches(count, 4 // count)
    expected, factors = textbook(adaptive_parts(make_accelerator("no"), "adaptive GAN"), whole(batches))
    accelerator = make_accelerator(precision)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    parts = adaptive_parts(accelerator, "adaptive GAN", precision=dtype)
    _, logs = generator_step(parts, batches, step=0)
    scale = accelerator.scaler.get_scale() if accelerator.scaler is not None else 1.0
    found = all_gradients(parts)
    assert found.keys() == expected.keys()
    # bf16 has 8 bits of precision, fp16 11: through a dozen layers directions agree to a few per cent.
    for name, factor in factors.items():
        assert logs[name] == pytest.approx(float(factor), rel=0.1)
    for part in ("autoencoder.net.encoder", "autoencoder.net.decoder", "regularizer", "objective"):
        names = [name for name in expected if name.startswith(part)]
        flat = torch.cat([found[name].flatten() / scale for name in names])
        reference = torch.cat([expected[name].flatten() for name in names])
        assert torch.cosine_similarity(flat, reference, dim=0) > 0.97, part
        assert flat.norm() == pytest.approx(float(reference.norm()), rel=0.1), part


@pytest.mark.parametrize("count", [1, 2])
def test_gradient_checkpointing_gives_equal_gradients(accelerator: Accelerator, count: int) -> None:
    found = []
    for checkpointing in (False, True):
        parts = adaptive_parts(accelerator, "adaptive GAN")
        if checkpointing:
            parts.plain_autoencoder.enable_gradient_checkpointing()
            parts.plain_autoencoder.train()
        generator_step(parts, make_batches(count, 2), step=0)
        found.append(all_gradients(parts))
    assert_close(found[1], found[0], TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_compiled_parts_give_equal_gradients(accelerator: Accelerator, count: int) -> None:
    """The last layers stay outside, and no compiled part is passed backward twice."""
    found = []
    for compiled in (False, True):
        parts = adaptive_parts(accelerator, "adaptive GAN")
        model = parts.plain_autoencoder
        if compiled:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
                model.compile_parts(for_training=True, apart=model.encoder_last_layer)
            blocks = [module for module in model.modules() if module._compiled_call_impl is not None]
            measured = (model.last_layer, model.encoder_last_layer)
            assert {type(block).__name__ for block in blocks} >= {"DownEncoderBlock2D", "UNetMidBlock2D"}
            assert not any(p is layer for block in blocks for p in block.parameters() for layer in measured)
        generator_step(parts, make_batches(count, 2), step=0)
        found.append(all_gradients(parts))
    assert_close(found[1], found[0], TOLERANCE)


def test_models_without_a_trained_encoder_are_refused() -> None:
    objective = ObjectiveConfig(regularization_weights={"alignment": 0.1})
    model = RAEAutoencoder.example("AutoencoderRAE")
    with pytest.raises(
        UserError, match="the weight of 'alignment' is measured at the encoder's last layer, and AutoencoderRAE"
    ):
        check_capabilities(model, objective, None, TrainingConfig(max_steps=1), Adaptive())
    check_capabilities(model, objective, None, TrainingConfig(max_steps=1), Turn())
    frozen = small_model()
    frozen.net.encoder.requires_grad_(False)
    with pytest.raises(UserError, match=r"'alignment' is measured at .*, which `trainable` excludes"):
        check_capabilities(frozen, objective, None, TrainingConfig(max_steps=1), Adaptive())
    check_capabilities(frozen, ObjectiveConfig(), None, TrainingConfig(max_steps=1), Adaptive())


def test_reconstruction_that_does_not_depend_on_the_encoder_is_refused(accelerator: Accelerator) -> None:
    class Replaced(Adaptive):
        def forward(self, *arguments: Any) -> Any:
            found = super().forward(*arguments)
            return found._replace(latents=torch.zeros_like(found.latents))

    parts = adaptive_parts(accelerator, "no discriminator", regularizer=Replaced())
    with pytest.raises(UserError, match="the reconstruction gives the encoder no gradient"):
        generator_step(parts, make_batches(1, 2), step=0)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_resumed_run_with_alignment_equals_uninterrupted(tiny_config: Path, tmp_path: Path, accumulation: int) -> None:
    pytest.importorskip("transformers")
    architecture = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "mlp_ratio": 1,
        "patch_size": 4,
    }
    features = {"class_path": "DINOv2", "init_args": {"weights": None, "architecture": architecture}}
    options = (
        "--regularizer", json.dumps({"class_path": "vf", "init_args": {"features": features}}),
        "--objective.regularization_weights", "{kl: 1.0e-6, alignment: 0.1}",
        "--training.accumulation", str(accumulation), "--optimizer.schedule", "constant",
    )  # fmt: skip
    expected = run(tiny_config, tmp_path / "whole", *options)
    run(tiny_config, tmp_path / "parts", *options, "--training.max_steps", "3")
    run(tiny_config, tmp_path / "parts", *options)
    first, last = (expected / "checkpoints" / f"step-0000000{step}" for step in (3, 6))
    assert files(tmp_path / "parts" / "checkpoints" / last.name) == files(last)
    before, after = (load_file(folder / "regularizer.safetensors") for folder in (first, last))
    assert set(after) == {"projection.weight"}
    assert (before["projection.weight"] != after["projection.weight"]).any()  # it learns
    lines = [json.loads(line) for line in (expected / "metrics.jsonl").read_text().splitlines()]
    factors = [line["alignment_adaptive_weight"] for line in lines if line["kind"] == "train"]
    assert len(factors) == 3
    assert all(0 < factor < ADAPTIVE_MAX for factor in factors)
