"""The invariants of the two optimization steps. Each fails when the line that it guards is broken."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from ldm_ae.losses import ReconstructionLoss
from ldm_ae.training.gradients import ADAPTIVE_MAX, adaptive_weight
from ldm_ae.training.step_parts import Reconstructed
from ldm_ae.training.steps import discriminator_step, generator_step
from tests.training.common import (
    assert_close,
    gradients,
    make_batches,
    make_parts,
    replace_objective,
    step_gradients,
    textbook_generator_gradients,
    whole,
)

# Both sides are float32 sums of a few thousand terms in another order.
TOLERANCE = 1e-5


class NoReconstruction(ReconstructionLoss):
    def __call__(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        return torch.zeros_like(reconstructions) * reconstructions


def test_perceptual_loss_gives_decoder_and_encoder_a_gradient(accelerator: Accelerator) -> None:
    parts = make_parts(
        accelerator, discriminator=False, reconstruction=NoReconstruction(), regularization_weights={},
        learned_log_variance=False,
    )  # fmt: skip
    generator_step(parts, make_batches(1, 4), step=0)
    found = gradients(parts.plain_autoencoder)
    assert found["net.decoder.conv_in.weight"].abs().max() > 0
    assert found["net.encoder.conv_in.weight"].abs().max() > 0
    assert not gradients(parts.objective)  # the feature network itself stays frozen


@pytest.mark.parametrize("count", [1, 4])
def test_generator_step_equals_the_textbook_gradients(accelerator: Accelerator, count: int) -> None:
    parts = make_parts(accelerator)
    batches = make_batches(count, 2)
    expected, weight = textbook_generator_gradients(parts, whole(batches))
    _, logs = generator_step(parts, batches, step=0)
    assert torch.allclose(logs["adaptive_weight"], weight, rtol=TOLERANCE)
    assert 0.01 < weight < 0.9 * ADAPTIVE_MAX  # the comparison would be empty at the clamp
    assert_close(step_gradients(parts), expected, TOLERANCE)


def test_accumulation_equals_one_large_batch(accelerator: Accelerator) -> None:
    results = []
    for batches in (make_batches(4, 2), [whole(make_batches(4, 2))]):
        parts = make_parts(accelerator)
        reconstructions, logs = generator_step(parts, batches, step=0)
        discriminator_logs = discriminator_step(parts, batches, reconstructions, step=0)
        assert discriminator_logs is not None
        results.append((step_gradients(parts), gradients(parts.plain_discriminator), logs | discriminator_logs))
    (generator, discriminator, logs), (expected, expected_discriminator, expected_logs) = results
    assert_close(generator, expected, TOLERANCE)
    assert_close(discriminator, expected_discriminator, TOLERANCE)
    assert logs.keys() == expected_logs.keys()
    for name, value in expected_logs.items():
        assert torch.allclose(logs[name], value, rtol=1e-5, atol=1e-7), name


@pytest.mark.parametrize("count", [1, 2])
def test_generator_step_gives_the_discriminator_no_gradient(accelerator: Accelerator, count: int) -> None:
    parts = make_parts(accelerator)
    generator_step(parts, make_batches(count, 2), step=0)
    assert gradients(parts.plain_autoencoder)
    assert not gradients(parts.plain_discriminator)
    assert all(p.requires_grad for p in parts.plain_autoencoder.parameters())


def test_discriminator_step_gives_the_autoencoder_no_gradient(accelerator: Accelerator) -> None:
    parts = make_parts(accelerator)
    batches = make_batches(1, 2)
    # Reconstructions with their graph: the step itself must cut it.
    attached = parts.plain_autoencoder(batches[0].pixel_values, batches[0].noise).reconstructions
    discriminator_step(parts, batches, [Reconstructed(batches[0].pixel_values, attached)], step=0)
    assert gradients(parts.plain_discriminator)
    assert not gradients(parts.plain_autoencoder)
    assert not gradients(parts.objective)


def test_adversarial_gradient_is_linear_in_its_weight(accelerator: Accelerator) -> None:
    """The gradient is linear in a fixed weight."""
    batches = make_batches(1, 2)
    found = []
    for weight in (0.0, 1.0, 3.0):
        parts = make_parts(accelerator, adaptive_gan_weight=False, gan_weight=weight)
        _, logs = generator_step(parts, batches, step=0)
        assert "adaptive_weight" not in logs
        found.append(gradients(parts.plain_autoencoder)["net.encoder.conv_in.weight"])
    assert (found[1] - found[0]).abs().max() > 0
    # Differences of float32 gradients that are larger than themselves: a digit less than the other tests.
    assert torch.allclose(
        found[2] - found[0], 3 * (found[1] - found[0]), rtol=1e-3, atol=1e-4 * float(found[0].abs().max())
    )


def test_adversarial_weight_follows_its_schedule(accelerator: Accelerator) -> None:
    parts = make_parts(
        accelerator, discriminator_start=10, discriminator_warmup_steps=5, gan_ramp_steps=4, gan_weight=0.8
    )
    weights = [parts.objective.config.gan_weight_at(step) for step in range(22)]
    assert weights == pytest.approx([0.0] * 15 + [0.2, 0.4, 0.6] + [0.8] * 4)
    batches = make_batches(1, 2)
    results = [Reconstructed(batches[0].pixel_values, -batches[0].pixel_values)]
    assert discriminator_step(parts, batches, results, step=9) is None
    assert not gradients(parts.plain_discriminator)
    assert discriminator_step(parts, batches, results, step=10) is not None
    _, logs = generator_step(parts, batches, step=14)
    assert "generator_loss" not in logs
    _, logs = generator_step(parts, batches, step=15)
    assert "generator_loss" in logs


def test_discriminator_is_not_run_before_its_start(accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = make_parts(accelerator, discriminator_start=10)

    def fail(_: Tensor) -> Tensor:
        raise AssertionError("the discriminator was run")

    monkeypatch.setattr(parts.plain_discriminator, "forward", fail)
    generator_step(parts, make_batches(2, 2), step=9)


def test_adaptive_weight_is_clamped(accelerator: Accelerator) -> None:
    parts = make_parts(accelerator)
    nll, gan = torch.full((3,), 1e3), torch.full((3,), 1e-9)
    assert adaptive_weight(parts, [torch.stack([nll, gan])]) == ADAPTIVE_MAX
    assert adaptive_weight(parts, [torch.stack([nll, nll])]) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_keeps_float32_parameters_and_close_gradients(
    make_accelerator: Callable[[str], Accelerator], precision: str
) -> None:
    batches = make_batches(2, 2)
    expected, _ = textbook_generator_gradients(make_parts(make_accelerator("no")), whole(batches))
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    accelerator = make_accelerator(precision)
    parts = make_parts(accelerator, precision=dtype)
    optimizer = accelerator.prepare_optimizer(torch.optim.Adam(parts.plain_autoencoder.parameters(), lr=1e-3))
    seen: list[torch.dtype] = []
    parts.plain_autoencoder.net.decoder.conv_in.register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    generator_step(parts, batches, step=0)
    assert set(seen) == {dtype}  # autocast was on
    scale = accelerator.scaler.get_scale() if accelerator.scaler is not None else 1.0
    found = gradients(parts.plain_autoencoder)
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    flat = torch.cat([gradient.flatten() / scale for gradient in found.values()])
    reference = torch.cat([expected[name].flatten() for name in found])
    # bf16 has 8 bits of precision, fp16 11: through a dozen layers directions agree to a few per cent.
    assert torch.cosine_similarity(flat, reference, dim=0) > 0.97
    assert flat.norm() == pytest.approx(float(reference.norm()), rel=0.05)
    optimizer.step()
    assert {p.dtype for p in parts.plain_autoencoder.parameters()} == {torch.float32}
    assert {p.dtype for p in parts.plain_discriminator.parameters()} == {torch.float32}


@pytest.mark.slow
def test_log_variance_is_optimized(accelerator: Accelerator) -> None:
    """Its optimum is the mean error: there its gradient vanishes, elsewhere it points there."""
    parts = make_parts(accelerator, discriminator=False, perceptual=None, reduction="mean")
    optimizer = torch.optim.SGD(parts.objective.parameters(), lr=0.5)
    logs: dict[str, Tensor] = {}
    for _ in range(60):
        parts.plain_autoencoder.zero_grad()
        optimizer.zero_grad()
        _, logs = generator_step(parts, make_batches(1, 2), step=0)
        optimizer.step()
    assert parts.objective.log_variance is not None
    # d/ds (e exp(-s) + s) = 0 at s = log e; 60 steps of gradient descent shrink the distance by 0.5^60.
    assert parts.objective.log_variance.item() == pytest.approx(float(logs["rec_loss"].log()), abs=1e-4)


def test_unknown_regularization_term_is_refused(accelerator: Accelerator) -> None:
    parts = make_parts(accelerator)
    replace_objective(parts, regularization_weights={"commitment": 1.0})
    with pytest.raises(ValueError, match=r"expected terms of \['kl'\], got 'commitment'"):
        generator_step(parts, make_batches(1, 2), step=0)
