"""The losses for a loop of the caller's own give the gradients of the Trainer's steps."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from ldm_ae.core.errors import UserError
from ldm_ae.discriminators import PatchDiscriminator
from ldm_ae.losses import ObjectiveConfig
from ldm_ae.models import KLAutoencoder, VQAutoencoder
from ldm_ae.quantizers import EMAVQ
from ldm_ae.regularizers import Chain, GaussianNoise
from ldm_ae.regularizers.eq_vae import EQVAE
from ldm_ae.regularizers.normalized_latents import NormalizedLatents
from ldm_ae.regularizers.scale_equivariance import ScaleEquivariance
from ldm_ae.training import TrainingLosses
from ldm_ae.training.steps import discriminator_step, generator_step
from tests.training.common import assert_close, gradients, make_batches, make_parts

TOLERANCE = 1e-5
"""The same float32 operations, once with the value of the loss added to its surrogate."""


def losses_like(parts) -> TrainingLosses:
    """The networks of `make_parts` in the public class."""
    return TrainingLosses(
        parts.plain_autoencoder, parts.objective.config, discriminator=parts.plain_discriminator,
        regularizer=parts.plain_pass.regularizer,
    )  # fmt: skip


@pytest.mark.parametrize("options", [
    {}, {"adaptive_gan_weight": False}, {"discriminator": False}, {"regularizer": GaussianNoise()},
    {"discriminator_warmup_steps": 9},
    {"regularizer": Chain(regularizers=(EQVAE(smallest_scale=0.5), ScaleEquivariance())), "learned_log_variance": True},
])  # fmt: skip
def test_training_losses_give_the_gradients_of_the_steps(accelerator: Accelerator, options: dict[str, object]) -> None:
    parts = make_parts(accelerator, **({"learned_log_variance": False} | options))  # type: ignore[arg-type]
    losses = losses_like(parts)
    found = losses.generator_loss(make_batches(1, 4)[0].pixel_values, step=0)
    found.loss.backward()
    by_loss = gradients(parts.plain_autoencoder)
    if parts.plain_discriminator is not None:
        assert not gradients(parts.plain_discriminator)
    losses.zero_grad()
    results, logs = generator_step(parts, [found.batch], step=0)
    assert_close(by_loss, gradients(parts.plain_autoencoder), TOLERANCE)
    assert found.logs.keys() == logs.keys()
    for name, value in logs.items():
        assert torch.allclose(found.logs[name], value, rtol=1e-5), name
    assert torch.equal(found.reconstructions, results[0].reconstructions)
    assert torch.equal(found.target, results[0].target)
    assert not found.reconstructions.requires_grad

    losses.zero_grad()
    real = losses.discriminator_loss(found, step=0)
    if parts.plain_discriminator is None:
        assert real is None
        return
    assert real is not None
    real.loss.backward()
    by_loss = gradients(parts.plain_discriminator)
    assert not gradients(parts.plain_autoencoder)
    losses.zero_grad()
    expected = discriminator_step(parts, [found.batch], results, step=0)
    assert expected is not None
    assert_close(by_loss, gradients(parts.plain_discriminator), TOLERANCE)
    assert {name: float(value) for name, value in real.logs.items()} == pytest.approx(
        {name: float(value) for name, value in expected.items()}
    )


def test_training_losses_have_the_value_of_the_objective(accelerator: Accelerator) -> None:
    parts = make_parts(accelerator, reduction="ldm", regularization_weights={"kl": 0.5}, gan_weight=0.25)
    found = losses_like(parts).generator_loss(make_batches(1, 4)[0].pixel_values, step=0)
    logs = found.logs
    expected = (
        logs["nll_loss"] + 0.5 * logs["kl_loss"] + 0.25 * logs["adaptive_weight"] * logs["generator_loss"]
    )  # fmt: skip
    assert float(found.loss.detach()) == pytest.approx(float(expected), rel=1e-5)


def test_second_reconstruction_counts_in_the_value_with_its_weight(accelerator: Accelerator) -> None:
    parts = make_parts(
        accelerator, reduction="mean", regularization_weights={}, discriminator=False, learned_log_variance=False,
        regularizer=ScaleEquivariance(alpha=0.5),
    )  # fmt: skip
    found = losses_like(parts).generator_loss(make_batches(1, 4)[0].pixel_values, step=0)
    expected = found.logs["nll_loss"] + 0.5 * found.logs["scale_equivariance_loss"]
    assert float(found.loss.detach()) == pytest.approx(float(expected), rel=1e-5)


def test_training_losses_prepare_the_regularizer() -> None:
    model, calls = KLAutoencoder.example("AutoencoderKL"), list[object]()

    class Prepared(GaussianNoise):
        def prepare(self, model: object) -> None:
            calls.append(model)

    TrainingLosses(model, regularizer=Prepared())
    assert calls == [model]


def test_learn_moves_running_statistics_of_the_regularizer() -> None:
    model, regularizer = KLAutoencoder.example("AutoencoderKL").train(), NormalizedLatents()
    losses = TrainingLosses(model, regularizer=regularizer)
    losses.learn(losses.generator_loss(torch.rand(2, 3, 16, 16) * 2 - 1, step=0))
    assert int(regularizer.updates) == 1
    assert regularizer.running_mean.any()


def test_learned_log_variance_has_its_gradient(accelerator: Accelerator) -> None:
    parts = make_parts(accelerator)
    losses = losses_like(parts)
    found = losses.generator_loss(make_batches(1, 4)[0].pixel_values, step=0)
    found.loss.backward()
    generator_step(parts, [found.batch], step=0)
    mine, expected = losses.objective.log_variance, parts.objective.log_variance
    assert mine is not None
    assert expected is not None
    assert mine is not expected
    assert torch.allclose(mine.grad, expected.grad, rtol=1e-5)
    assert any(parameter is mine for parameter in losses.generator_parameters())


def test_discriminator_loss_starts_at_its_step() -> None:
    model = KLAutoencoder.example("AutoencoderKL")
    losses = TrainingLosses(
        model, ObjectiveConfig(discriminator_start=5), discriminator=PatchDiscriminator(ndf=4, n_layers=1)
    )
    found = losses.generator_loss(torch.zeros(1, 3, 16, 16), step=4)
    assert "generator_loss" not in found.logs
    assert losses.discriminator_loss(found, step=4) is None
    assert losses.discriminator_loss(found, step=5) is not None
    trained = {id(p) for p in losses.discriminator_parameters()}
    assert trained == {id(p) for p in losses.discriminator.parameters()}  # type: ignore[union-attr]
    assert not trained & {id(p) for p in losses.generator_parameters()}


def test_learn_moves_codes_that_are_averages() -> None:
    quantizer = EMAVQ(16, 4)
    model = VQAutoencoder(quantizer=quantizer, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2,
                          mid_block_add_attention=False).train()  # fmt: skip
    losses = TrainingLosses(model, ObjectiveConfig(regularization_weights={"commitment": 1.0}))
    found = losses.generator_loss(torch.rand(2, 3, 16, 16) * 2 - 1, step=0)
    found.loss.backward()
    before = quantizer.embedding.weight.detach().clone()
    logs = losses.learn(found)
    assert "codebook_perplexity" in logs
    assert not torch.equal(quantizer.embedding.weight, before)


def test_training_losses_refuse() -> None:
    model = KLAutoencoder.example("AutoencoderKL").train()
    losses = TrainingLosses(model)
    for images in (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.full((1, 3, 16, 16), 255.0)):
        with pytest.raises(UserError, match="encode_images"):
            losses.generator_loss(images, step=0)
    losses.generator_loss(torch.zeros(1, 3, 16, 16), step=0)
    losses.generator_loss(torch.full((1, 3, 16, 16), 2.0), step=1)  # only the first batch waits for the device
    with pytest.raises(UserError, match="got 'commitment'"):
        TrainingLosses(model, ObjectiveConfig(regularization_weights={"commitment": 1.0})).generator_loss(
            torch.zeros(1, 3, 16, 16), step=0
        )
    model.requires_grad_(False)
    with pytest.raises(UserError, match="adaptive_gan_weight"):
        TrainingLosses(model, discriminator=PatchDiscriminator(ndf=4, n_layers=1))
