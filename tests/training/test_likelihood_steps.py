"""The learned scale of a likelihood in the training step."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from ldm_ae.losses import DiscretizedLogistic, Gaussian
from ldm_ae.regularizers import ScaleEquivariance
from ldm_ae.training.step_parts import forward
from ldm_ae.training.steps import generator_step
from tests.training.common import assert_close, make_batches, make_parts, step_gradients, whole


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", [Gaussian, DiscretizedLogistic])
def test_step_is_the_gradient_of_the_negative_elbo(
    accelerator: Accelerator, kind: type[Gaussian | DiscretizedLogistic], count: int
) -> None:
    """Networks and scale have the gradient of -log p(x|z) + KL in nats, averaged over the images."""
    parts = make_parts(
        accelerator, discriminator=False, perceptual=None, reduction="ldm", regularization_weights={"kl": 1.0},
        reconstruction=kind(), learned_log_variance=False,
    )  # fmt: skip
    batches = make_batches(count, 4 // count)
    _, logs = generator_step(parts, batches, step=0)
    found = step_gradients(parts)
    for module in (parts.plain_autoencoder, parts.objective):
        module.zero_grad()
    model, batch, likelihood = parts.plain_autoencoder, whole(batches), parts.objective.likelihood
    assert likelihood is not None
    posterior, latents = model.draw(batch.pixel_values, batch.noise)
    elbo = likelihood.log_prob(model.decode(latents), batch.pixel_values) - posterior.regularization()["kl"]
    (-elbo.mean()).backward()
    assert float(logs["nll_loss"] + logs["kl_loss"]) == pytest.approx(-elbo.mean().item(), rel=1e-5)
    assert_close(found, step_gradients(parts), 1e-4)
    assert [name for name in found if name.startswith("objective.likelihood.")]


def test_further_reconstructions_reach_the_scale(accelerator: Accelerator) -> None:
    parts = make_parts(
        accelerator, discriminator=False, perceptual=None, reduction="mean", regularization_weights={},
        reconstruction=Gaussian(), learned_log_variance=False, regularizer=ScaleEquivariance(alpha=0.5),
    )  # fmt: skip
    (batch,) = make_batches(1, 2)
    generator_step(parts, [batch], step=0)
    likelihood = parts.objective.likelihood
    assert likelihood is not None
    found = likelihood.log_variance.grad
    likelihood.zero_grad()
    output = forward(parts.training_pass, batch)
    loss = likelihood(output.reconstructions, output.target).mean()
    for more in output.further:
        loss = loss + more.weight * likelihood(more.reconstructions, more.target).mean()
    assert torch.allclose(found, torch.autograd.grad(loss, likelihood.log_variance)[0], rtol=1e-5)
