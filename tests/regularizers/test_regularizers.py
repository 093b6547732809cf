"""The interface of regularizers, and each regularizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ldm_ae.core.draws import REGULARIZER, Draws
from ldm_ae.core.errors import UserError
from ldm_ae.models import GaussianPosterior, KLAutoencoder
from ldm_ae.regularizers import (
    REGULARIZERS,
    Distillation,
    GaussianNoise,
    Identity,
    Regularized,
    Regularizer,
)
from ldm_ae.regularizers.additive_noise import AdditiveNoise


def regularize(regularizer: Regularizer, latents: Tensor, seeds: range, side: int = 8) -> Regularized:
    """Its output for images whose numbers are those of their seeds."""
    pixel_values = torch.tensor([float(seed) for seed in seeds]).view(-1, 1, 1, 1).expand(-1, 3, side, side) / 100
    posterior = GaussianPosterior(torch.cat([latents, torch.zeros_like(latents)], dim=1))
    return regularizer(posterior, latents, pixel_values, Draws(seeds, REGULARIZER))


@pytest.mark.parametrize("cls", REGULARIZERS.classes())
def test_every_regularizer_fulfils_the_interface(cls: type[Regularizer], tmp_path: Path) -> None:
    """Shapes, a gradient for the encoder, and samples that do not depend on each other or on the call."""
    torch.manual_seed(0)
    model = KLAutoencoder.example("AutoencoderKL")
    model.save_pretrained(tmp_path)
    made = Distillation(teacher=str(tmp_path)) if cls is Distillation else cls.example()
    regularizer, latents = made.train(), torch.randn(6, 4, 4, 4, requires_grad=True)
    regularizer.prepare(model)
    regularizer.verify(torch.rand(2, 3, 8, 8) * 2 - 1)
    found = regularize(regularizer, latents, range(6))
    assert found.latents.shape[:2] == latents.shape[:2]
    assert found.target.shape[:2] == (6, 3)
    assert found.target.shape[-1] // found.latents.shape[-1] == 2  # the model's downsample factor
    for term in found.terms.values():
        assert term.shape == (6,)
        assert term.dtype == torch.float32
    total = found.latents.sum() + sum(term.sum() for term in found.terms.values())
    (gradient,) = torch.autograd.grad(total, latents)
    assert (gradient.abs().amax(dim=(1, 2, 3)) > 0).all()
    part = regularize(regularizer, latents[2:4], range(2, 4))
    assert torch.equal(part.latents, found.latents[2:4])
    assert torch.equal(part.target, found.target[2:4])


def test_every_regularizer_module_is_registered() -> None:
    assert REGULARIZERS["Identity"] is Identity
    assert REGULARIZERS["GaussianNoise"] is GaussianNoise
    with pytest.raises(UserError, match="no regularizer is named 'GausianNoise'; did you mean GaussianNoise"):
        REGULARIZERS["GausianNoise"]


def test_identity_changes_nothing() -> None:
    latents = torch.randn(2, 4, 4, 4)
    pixel_values = torch.rand(2, 3, 8, 8)
    found = Identity()(None, latents, pixel_values, Draws([1, 2], REGULARIZER))
    assert found.latents is latents
    assert found.target is pixel_values
    assert found.terms == {}


def test_gaussian_noise_interpolates() -> None:
    """z' = (1 - t) z + t γ ε: the mean of a constant z gives 1 - t; the remainder / t is noise of strength γ."""
    constant, count = 1e3, 400
    latents = torch.full((count, 4, 32, 32), constant, dtype=torch.float64)
    found = regularize(GaussianNoise(gamma=3.0, max_fraction=0.5), latents, range(count), side=64)
    t = 1 - found.latents.mean(dim=(1, 2, 3)) / constant
    # t is off by t γ / (1000 · sqrt(4096)), below 1e-4; the mean of 400 such numbers by up to 3 · 0.5 / sqrt(4800).
    assert -1e-3 < t.min() < 0.01
    assert 0.49 < t.max() < 0.501
    assert t.mean() == pytest.approx(0.25, abs=0.022)
    assert t.std() == pytest.approx(0.5 / 12**0.5, rel=0.1)
    noise = (found.latents - found.latents.mean(dim=(1, 2, 3), keepdim=True))[t > 0.1] / t[t > 0.1].view(-1, 1, 1, 1)
    assert noise.std() == pytest.approx(3.0, rel=0.01)
    assert noise.pow(4).mean() / noise.pow(2).mean() ** 2 == pytest.approx(3.0, rel=0.02)  # normal, not uniform
    assert found.target.flatten(1)[:, 0].tolist() == pytest.approx([seed / 100 for seed in range(count)])
    assert found.terms == {}


def test_gaussian_noise_is_determined_by_the_seeds() -> None:
    latents = torch.zeros(3, 4, 8, 8)
    first, again, other = (
        regularize(GaussianNoise(), latents, seeds).latents for seeds in (range(3), range(3), range(5, 8))
    )
    assert torch.equal(first, again)
    assert not torch.isclose(first, other).all(dim=-1).any()
    assert len({float(row.std()) for row in first}) == 3


@pytest.mark.parametrize(("gamma", "max_fraction"), [(0.0, 1.0), (3.0, 0.0), (3.0, 1.5)])
def test_invalid_noise_strength_is_refused(gamma: float, max_fraction: float) -> None:
    with pytest.raises(UserError, match=r"GaussianNoise: expected gamma above 0 and max_fraction in \(0, 1\], got"):
        GaussianNoise(gamma=gamma, max_fraction=max_fraction)


def test_additive_noise_has_a_uniform_strength_and_keeps_the_latents() -> None:
    """z + σ ε with σ uniform in [0, τ): per sample, the standard deviation of the difference."""
    count = 400
    latents = torch.randn(count, 4, 32, 32, dtype=torch.float64)
    noise = regularize(AdditiveNoise(tau=0.8), latents, range(count), side=64).latents - latents
    sigma = noise.flatten(1).std(dim=1)
    assert sigma.max() < 0.8 * 1.05
    assert sigma.mean() == pytest.approx(0.4, abs=0.035)  # 3 standard deviations of the mean of 400 uniform numbers
    assert sigma.std() == pytest.approx(0.8 / 12**0.5, rel=0.1)
    assert noise.mean().abs() < 0.01
    with pytest.raises(UserError, match="expected tau above 0, got 0"):
        AdditiveNoise(tau=0.0)
