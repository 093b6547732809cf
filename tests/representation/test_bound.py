"""Bounds on log p(x), annealed importance sampling and the posterior where all are known in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from ldm_ae.core.errors import UserError
from ldm_ae.representation.bound import (
    Gaps,
    ais,
    bits_per_dimension,
    elbo,
    gaps,
    iwae,
    optimal_posterior,
    posterior_draws,
    posterior_figure,
)
from ldm_ae.representation.bound.ais import temperatures
from ldm_ae.representation.bound.picture import plane
from ldm_ae.representation.bound.posterior import r_hat
from tests.evaluation.stubs import IdentityAutoencoder
from tests.representation.linear_gaussian import LinearGaussian

ORTHOGONAL = torch.tensor([[0.6, 0.0], [0.0, 0.5], [0.3, 0.0], [0.0, -0.2]])


def test_bounds_of_an_exact_posterior_are_log_p() -> None:
    model = LinearGaussian(ORTHOGONAL)
    images = model.images(5)
    expected = model.log_prob(images)
    # Every importance weight is p(x) exactly; float32 rounds.
    torch.testing.assert_close(iwae(model, images, k=3), expected, atol=2e-5, rtol=0)
    # The KL is exact, and log p(x|z) of one draw has a standard deviation below 1 nat: 1,000 draws, 4 deviations.
    torch.testing.assert_close(elbo(model, images, samples=1000).nats, expected, atol=0.13, rtol=0)


def test_elbo_misses_the_kl_to_the_posterior_and_iwae_closes_it() -> None:
    model = LinearGaussian()
    images = model.images(4)
    expected = model.log_prob(images)
    gap = model.approximation_gap()
    assert gap > 0.1
    torch.testing.assert_close(elbo(model, images, samples=1000).nats, expected - gap, atol=0.13, rtol=0)
    # 5,000 weights of a standard deviation near 1, relative to p(x): 1/70, 4 deviations.
    torch.testing.assert_close(iwae(model, images, k=5000), expected, atol=0.06, rtol=0)


def test_draws_depend_on_the_seeds_of_images_and_not_on_chunks() -> None:
    model = LinearGaussian()
    images = model.images(3)
    seeds = torch.tensor([5, 9, 2])
    together = iwae(model, images, k=10, seeds=seeds)
    torch.testing.assert_close(iwae(model, images[1:2], k=10, seeds=seeds[1:2], chunk=3), together[1:2])
    torch.testing.assert_close(elbo(model, images[2:], seeds=seeds[2:]).nats, elbo(model, images, seeds=seeds).nats[2:])
    assert not torch.allclose(iwae(model, images, k=10), together)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["linear", "sigmoid"])
def test_annealing_finds_log_p_without_the_encoder(schedule: str) -> None:
    model = LinearGaussian(shift=3.0)
    images = model.images(3)
    found = ais(model, images, steps=100, chains=100, leapfrog_steps=5, schedule=schedule)
    # The log of a mean of 50 effective weights has a deviation near 1/sqrt(50) = 0.14; 2 of them.
    assert found.effective_chains.min() > 50
    torch.testing.assert_close(found.nats, model.log_prob(images), atol=0.3, rtol=0)
    assert 0.5 < found.acceptance < 1


def test_schedules_rise_from_zero_to_one_and_the_sigmoid_is_slow_at_both_ends() -> None:
    for schedule in ("linear", "sigmoid"):
        levels = temperatures(10, schedule)
        assert (levels[0], levels[-1]) == (0, 1)
        assert bool((levels.diff() > 0).all())
    steps = temperatures(10, "sigmoid").diff()
    assert steps[0] < 0.3 * steps[5]
    torch.testing.assert_close(steps, steps.flip(0))
    with pytest.raises(UserError, match="the schedule is 'cosine'; expected linear or sigmoid"):
        temperatures(10, "cosine")  # type: ignore[arg-type]


@pytest.mark.slow
def test_gap_is_split_into_approximation_and_amortization() -> None:
    model = LinearGaussian(shift=0.4)
    images = model.images(3)
    found = gaps(model, images, model.log_prob(images), steps=150, learning_rate=0.05, evaluation_samples=1000)
    # 500 pairs of draws, which cancel the linear term; the quadratic one has a deviation of 0.6: 0.03, 3 of them.
    torch.testing.assert_close(found.approximation, torch.full((3,), model.approximation_gap()), atol=0.1, rtol=0)
    # A shift s of both means costs s^T precision s / 2.
    expected = 0.5 * 0.4**2 * float(model.precision.sum())
    torch.testing.assert_close(found.amortization, torch.full((3,), expected), atol=0.1, rtol=0)
    torch.testing.assert_close(found.total, found.approximation + found.amortization)
    best = optimal_posterior(model, images, steps=150, learning_rate=0.05)
    # The optimizer ends within the noise of 8 draws in its last steps.
    torch.testing.assert_close(best.mean.flatten(1), model.posterior_mean(images), atol=0.05, rtol=0)
    torch.testing.assert_close(best.log_variance[0].flatten(), -model.precision.diagonal().log(), atol=0.1, rtol=0)


@pytest.mark.slow
def test_posterior_draws_have_its_moments() -> None:
    model = LinearGaussian()
    image = model.images(1)
    found = posterior_draws(model, image, draws=150, chains=16, warmup=60, leapfrog_steps=5)
    points = found.latents.flatten(0, 1).flatten(1)
    assert points.shape == (16 * 150, 2)
    assert found.r_hat.max() < 1.1
    # At least some hundred independent draws of deviations below 0.5: 0.03 each, 3 deviations.
    torch.testing.assert_close(points.mean(dim=0), model.posterior_mean(image)[0], atol=0.09, rtol=0)
    torch.testing.assert_close(points.T.cov(), model.covariance, atol=0.05, rtol=0)
    with pytest.raises(UserError, match="one image, got 2"):
        posterior_draws(model, model.images(2))


def test_r_hat_is_one_for_equal_chains_and_large_for_distant_ones() -> None:
    chains = torch.randn(4, 500, 1, generator=torch.Generator().manual_seed(0))
    assert float(r_hat(chains)) == pytest.approx(1.0, abs=0.02)
    assert float(r_hat(chains + 3 * torch.arange(4.0).view(4, 1, 1))) > 2


@pytest.mark.slow
def test_picture_shows_the_correlation_that_the_encoder_misses() -> None:
    pytest.importorskip("matplotlib")
    model = LinearGaussian()
    image = model.images(1)
    draws = posterior_draws(model, image, draws=50, chains=8, warmup=30, leapfrog_steps=5).latents
    posterior = model.encode(image)
    pair = plane(draws, posterior, (0, 1))
    assert abs(float(pair.covariance[0, 1])) == 0
    assert float(pair.points.T.corrcoef()[0, 1]) < -0.3
    torch.testing.assert_close(pair.mean.float(), posterior.mean.flatten())
    principal = plane(draws, posterior)
    assert abs(float(principal.points.T.corrcoef()[0, 1])) < 1e-6
    assert float(principal.points.var(dim=0)[0]) > float(principal.points.var(dim=0)[1])
    [axes] = posterior_figure(draws, posterior).axes
    assert axes.get_xlabel() == "first principal direction of the draws"
    with pytest.raises(UserError, match="two latents from 0 to 1"):
        plane(draws, posterior, (0, 2))


def test_bits_per_dimension_count_the_distance_of_levels() -> None:
    model = LinearGaussian()
    images = model.images(1)
    bits = bits_per_dimension(model, torch.tensor([4 * -math.log(2.0)]), images)
    assert float(bits) == pytest.approx(1 + math.log2(255 / 2))


def test_models_without_a_likelihood_are_rejected() -> None:
    model = IdentityAutoencoder()
    with pytest.raises(UserError, match="the model has no likelihood"):
        elbo(model, torch.zeros(1, 3, 4, 4))


def test_model_keeps_its_mode_and_gradients() -> None:
    model = LinearGaussian()
    model.extra = torch.nn.Linear(1, 1)
    model.train()
    elbo(model, model.images(1))
    assert model.training
    assert model.extra.weight.requires_grad


def test_gaps_are_differences() -> None:
    found = Gaps(torch.tensor([-1.0]), torch.tensor([-1.5]), torch.tensor([-3.5]))
    assert (float(found.approximation), float(found.amortization), float(found.total)) == (0.5, 2.0, 2.5)
