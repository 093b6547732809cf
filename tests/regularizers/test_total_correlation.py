"""The total correlation, by beta-TCVAE's estimate and by FactorVAE's discriminator."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ldm_ae.core.draws import REGULARIZER, Draws
from ldm_ae.core.errors import UserError
from ldm_ae.models import GaussianPosterior, VQAutoencoder
from ldm_ae.models.adapters.vector import VectorAutoencoder
from ldm_ae.quantizers import FSQ
from ldm_ae.regularizers.beta_tcvae import BetaTCVAE
from ldm_ae.regularizers.chain import Chain
from ldm_ae.regularizers.factor_vae import FactorVAE
from ldm_ae.regularizers.interface import Regularized, Regularizer

NOISE = 0.4
"""Standard deviation of each posterior."""


def gaussian_posteriors(count: int, correlation: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Posteriors whose mean is N(0, R), R = [[1, c], [c, 1]], and one draw of each: latents, mean, log-variance."""
    generator = torch.Generator().manual_seed(seed)
    covariance = torch.tensor([[1.0, correlation], [correlation, 1.0]]) - NOISE**2 * torch.eye(2)
    mean = torch.randn(count, 2, generator=generator) @ torch.linalg.cholesky(covariance).T
    latents = mean + NOISE * torch.randn(count, 2, generator=generator)
    return latents, mean, torch.full_like(mean, 2 * math.log(NOISE))


@pytest.mark.parametrize("correlation", [0.0, 0.7])
def test_estimate_is_the_closed_form_of_a_gaussian(correlation: float) -> None:
    """TC = -log(1 - c^2) / 2; the terms of 1000 samples have a standard deviation below 1."""
    given = [each[:, None] for each in gaussian_posteriors(1000, correlation)]
    exact = -0.5 * math.log(1 - correlation**2)
    found = BetaTCVAE(images=10**6).total_correlation(*given).mean()
    assert float(found) == pytest.approx(exact, abs=0.04)
    # Where the batch is the data set, both estimates are q(z) itself, but for the constant of the weighted one.
    whole, weighted = (
        BetaTCVAE(images=1000, estimator=name).total_correlation(*given)  # type: ignore[arg-type]
        for name in ("stratified", "weighted")
    )
    torch.testing.assert_close(whole, weighted - math.log(1000), rtol=1e-4, atol=1e-4)


def test_stratified_density_is_unbiased_over_batches() -> None:
    """The mean of the estimates of q(z_0) over all pairs of a data set of 5 is the mean of the 5 densities."""
    _, mean, log_variance = gaussian_posteriors(5, 0.3)
    regularizer = BetaTCVAE(images=5)
    z = torch.tensor([[0.2, -0.5]])
    normal = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    densities = normal.log_prob(z).sum(dim=1).exp()
    estimates = [densities[0] / 5 + 4 / 5 * densities[j] for j in range(1, 5)]
    assert float(torch.stack(estimates).mean()) == pytest.approx(float(densities.mean()), rel=1e-5)
    for j in range(1, 5):
        rows = [0, j]
        given = (each[:, None] for each in (z.expand(2, 2), mean[rows], log_variance[rows]))
        found = regularizer.total_correlation(*given)[0, 0]
        single = normal.log_prob(z).exp()
        marginals = single[0] / 5 + 4 / 5 * single[j]
        assert float(found) == pytest.approx(float(estimates[j - 1].log() - marginals.log().sum()), rel=1e-4)


def apply(regularizer: Regularizer, latents: Tensor, mean: Tensor, log_variance: Tensor, step: int = 0) -> Regularized:
    posterior = GaussianPosterior(torch.cat([mean, log_variance], dim=1)[:, :, None, None])
    seeds = range(step * len(latents), (step + 1) * len(latents))
    return regularizer(
        posterior, latents[:, :, None, None], torch.zeros(len(latents), 3, 2, 2), Draws(seeds, REGULARIZER)
    )


def vector_model() -> VectorAutoencoder:
    return VectorAutoencoder(image_size=4, latent_channels=2, architecture="mlp", hidden=(4,))


@pytest.mark.slow
def test_discriminator_learns_the_closed_form_of_a_gaussian() -> None:
    """A density ratio of quadratic logarithm, learned by 150 steps of a small network: within 0.1 of 0.34."""
    torch.manual_seed(0)
    regularizer = FactorVAE(width=32, depth=2)
    regularizer.prepare(vector_model())
    optimizer = torch.optim.Adam(regularizer.parameters(), lr=1e-2)
    for step in range(150):
        terms = apply(regularizer, *gaussian_posteriors(256, 0.7, seed=step), step).terms
        optimizer.zero_grad()
        terms["density_ratio"].mean().backward()
        optimizer.step()
    dependent, independent = (
        float(apply(regularizer, *gaussian_posteriors(1000, c, seed=10**4)).terms["total_correlation"].detach().mean())
        for c in (0.7, 0.0)
    )
    assert dependent == pytest.approx(-0.5 * math.log(1 - 0.7**2), abs=0.1)
    assert independent < 0  # this discriminator expects the dependence, which is missing


def test_each_parameter_gets_its_own_loss_alone() -> None:
    torch.manual_seed(0)
    regularizer = FactorVAE(width=8, depth=2)
    regularizer.prepare(vector_model())
    latents, mean, log_variance = gaussian_posteriors(16, 0.5)
    latents.requires_grad_()
    terms = apply(regularizer, latents, mean, log_variance).terms
    parameters = [*regularizer.parameters()]
    for name, unused in (("total_correlation", parameters), ("density_ratio", [latents])):
        found = torch.autograd.grad(terms[name].sum(), unused, allow_unused=True, retain_graph=True)
        assert not any(gradient is not None for gradient in found)
    (at_latents,) = torch.autograd.grad(terms["total_correlation"].sum(), latents)
    copy = latents.detach().requires_grad_()
    (expected,) = torch.autograd.grad(regularizer.discriminator(copy).sum(), copy)
    assert torch.equal(at_latents, expected)
    again = apply(regularizer, latents, mean, log_variance).terms["density_ratio"]
    assert torch.equal(again, terms["density_ratio"])  # the permutation is that of the seeds
    assert not torch.equal(apply(regularizer, latents, mean, log_variance, step=1).terms["density_ratio"], again)


def test_both_declare_what_they_need_and_refuse_what_they_cannot_use() -> None:
    both = Chain(regularizers=(BetaTCVAE(images=10), FactorVAE(width=4, depth=1)))
    assert both.mixes_samples
    assert both.needed_terms == {"density_ratio"}
    assert not Chain(regularizers=()).mixes_samples
    unknown = BetaTCVAE()
    Chain(regularizers=(unknown,)).count_images(7)
    assert unknown.images == 7
    given = BetaTCVAE(images=3)
    given.count_images(7)
    assert given.images == 3
    one = gaussian_posteriors(1, 0.0)
    with pytest.raises(UserError, match="which has only one"):
        apply(BetaTCVAE(images=10), *one)
    with pytest.raises(UserError, match="expected the number of training images"):
        apply(BetaTCVAE(), *gaussian_posteriors(4, 0.0))
    model = VQAutoencoder(quantizer=FSQ((4, 4)), block_out_channels=(4,), layers_per_block=1, norm_num_groups=2)
    for regularizer in (BetaTCVAE(images=10), FactorVAE()):
        with pytest.raises(UserError, match=f"{type(regularizer).__name__} needs a Gaussian posterior"):
            regularizer.prepare(model)
