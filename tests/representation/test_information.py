"""Information in latents where it is known."""

from __future__ import annotations

import math

import pytest
import torch

from ldm_ae.core.errors import UserError
from ldm_ae.representation.information import (
    Point,
    active_units,
    collapse,
    information,
    rate_distortion,
    rate_distortion_figure,
    total_correlation,
)
from tests.evaluation.stubs import IdentityAutoencoder
from tests.representation.linear_gaussian import LinearGaussian


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_posteriors_at_the_prior_have_no_information() -> None:
    found = information(torch.zeros(50, 3), torch.zeros(50, 3))
    assert found == pytest.approx((0.0, 0.0, 0.0, math.log(50)), abs=1e-9)


def test_distinct_posteriors_show_log_n_nats() -> None:
    means = 100.0 * torch.arange(8.0)[:, None].expand(-1, 2)
    found = information(means, torch.zeros(8, 2))
    assert found.mutual_information == pytest.approx(math.log(8))
    assert found.rate == pytest.approx(0.5 * float((means**2).sum()) / 8)
    assert found.aggregate_kl == pytest.approx(found.rate - math.log(8))


def test_tiny_variances_do_not_exceed_the_limit() -> None:
    """Squares of means over variances of e^-30 are 1e15, where float64 has steps of 0.1."""
    found = information(10 * normal(20, 100), torch.full((20, 100), -30.0))
    assert found.mutual_information == pytest.approx(math.log(20), abs=1e-9)


@pytest.mark.slow
def test_gaussian_channel_has_its_capacity_and_its_aggregate_is_the_prior() -> None:
    variance = 0.36
    means = math.sqrt(1 - variance) * normal(2000, 2)
    found = information(means, torch.full((2000, 2), math.log(variance)))
    # I = -log(variance) / 2 for each of two latents; 2,000 draws of a deviation near 1: 0.02, 4 of them.
    assert found.mutual_information == pytest.approx(-math.log(variance), abs=0.09)
    assert found.aggregate_kl == pytest.approx(0.0, abs=0.05)
    assert total_correlation(means, torch.full((2000, 2), math.log(variance))) == pytest.approx(0.0, abs=0.03)


@pytest.mark.slow
def test_total_correlation_is_that_of_a_correlated_gaussian() -> None:
    correlation, variance = 0.8, 0.1
    covariance = torch.tensor([[1.0, correlation], [correlation, 1.0]]) - variance * torch.eye(2)
    means = normal(2000, 2) @ torch.linalg.cholesky(covariance).T
    found = total_correlation(means, torch.full((2000, 2), math.log(variance)))
    # 2,000 draws of a deviation near 0.8: 0.02, 4 of them, and a bias upwards.
    assert found == pytest.approx(-0.5 * math.log(1 - correlation**2), abs=0.08)


def test_active_units_and_collapse_report() -> None:
    means = torch.zeros(4, 4)
    means[:, 0] = torch.tensor([-1.0, 1.0, -1.0, 1.0])
    means[:, 1] = torch.tensor([-0.05, 0.05, -0.05, 0.05])  # variance 0.0025
    means[:, 3] = 2.0
    assert active_units(means).tolist() == [True, False, False, False]
    found = collapse(means, torch.zeros(4, 4))
    assert found.kl.tolist() == pytest.approx([0.5, 0.00125, 0.0, 2.0])
    text = "\n".join(found.lines)
    assert "1 of 4 latents are active" in text
    assert "2 inactive latents are at the prior" in text
    assert "1 inactive latent is constant but not at the prior: a cost of 2 nats" in text
    assert "The KL is 2.501 nats for each image; the latent with the most has 80% of it." in text
    assert "The posterior has collapsed" in collapse(torch.zeros(4, 2), torch.zeros(4, 2)).lines[1]
    assert "No latent has collapsed." in collapse(normal(9, 2), torch.zeros(9, 2)).lines


def test_rate_and_distortion_are_those_of_a_draw() -> None:
    model = LinearGaussian()
    images = model.images(300).clamp(-1, 1)
    point = rate_distortion("one", model, images.split(100))
    kl = model.encode(images).regularization()["kl"]
    assert point.rate == pytest.approx(float(kl.mean()) / math.log(2) / 4)
    # The mode has a smaller error than a draw; the same images in other batches have the same draws.
    mode = (model.decode(model.encode(images).mode()).clamp(-1, 1) - images).square().mean()
    assert point.distortion > float(mode)
    assert rate_distortion("one", model, [images]) == pytest.approx(point)
    assert Point("", 1.0, 0.04).psnr == pytest.approx(20.0)
    with pytest.raises(UserError, match="two has no Gaussian posteriors"):
        rate_distortion("two", IdentityAutoencoder(), [images])
    with pytest.raises(UserError, match="at least one image"):
        rate_distortion("one", model, [])


@pytest.mark.slow
def test_figure_has_a_line_for_each_curve_in_the_order_of_rates() -> None:
    pytest.importorskip("matplotlib")
    curves = {"beta": [Point("4", 2.0, 0.01), Point("1", 1.0, 0.02)], "JPEG": [Point("5", 3.0, 0.1)]}
    [axes] = rate_distortion_figure(curves).axes
    assert [line.get_label() for line in axes.lines] == ["beta", "JPEG"]
    assert axes.lines[0].get_xdata().tolist() == [1.0, 2.0]
    assert {text.get_text() for text in axes.texts} == {"1", "4", "5"}
