"""Likelihoods against other implementations, closed forms and their own samples."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.losses import (
    RECONSTRUCTION_LOSSES,
    AlphaAware,
    Bernoulli,
    DiscretizedLogistic,
    Gaussian,
    Likelihood,
    Objective,
    ObjectiveConfig,
    WeightedReconstruction,
)
from ldm_ae.losses.reconstruction import build_likelihood, describe_likelihood
from ldm_ae.models import KLAutoencoder, load_autoencoder, model_hash
from ldm_ae.models.likelihoods import record_likelihood

LIKELIHOODS = [cls for cls in RECONSTRUCTION_LOSSES.classes() if issubclass(cls, Likelihood)]


def some_images(levels: int = 256) -> tuple[Tensor, Tensor]:
    """Reconstructions in (-1, 1), and pixel values that are levels; (2, 1, 4, 4) each."""
    generator = torch.Generator().manual_seed(0)
    reconstructions = torch.rand(2, 1, 4, 4, generator=generator) * 1.9 - 0.95
    return reconstructions, torch.randint(levels, (2, 1, 4, 4), generator=generator) / (levels - 1) * 2 - 1


def test_bernoulli_is_torchs_binary_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, x = torch.randn(2, 1, 4, 4, requires_grad=True), torch.rand(2, 1, 4, 4)
    found = Bernoulli()(torch.tanh(logits / 2), 2 * x - 1)
    expected = F.binary_cross_entropy_with_logits(logits, x, reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    (mine,), (theirs,) = (torch.autograd.grad(loss.sum(), logits, retain_graph=True) for loss in (found, expected))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_bernoulli_of_impossible_values_is_finite_and_leads_back() -> None:
    reconstructions = torch.tensor([-1.0, 1.0, -1.3, 1.3]).view(4, 1, 1, 1).requires_grad_()
    loss = Bernoulli()(reconstructions, -reconstructions.detach().sign())
    loss.sum().backward()
    assert loss.isfinite().all()
    assert torch.equal(reconstructions.grad.sign(), reconstructions.detach().sign())  # type: ignore[union-attr]
    right = Bernoulli()(torch.tensor([[[[1.0]]]]), torch.tensor([[[[1.0]]]]))
    assert 0 <= float(right) < 4e-5


def test_gaussian_is_torchs_normal() -> None:
    reconstructions, x = some_images()
    likelihood = Gaussian(scale=0.3)
    expected = torch.distributions.Normal(reconstructions, 0.3).log_prob(x)
    torch.testing.assert_close(-likelihood(reconstructions, x), expected)
    torch.testing.assert_close(likelihood.log_prob(reconstructions, x), expected.sum(dim=(1, 2, 3)))


@pytest.mark.parametrize("scale", [1e-3, 0.1, 3.0])
def test_discretized_logistic_sums_to_one_over_the_levels(scale: float) -> None:
    likelihood = DiscretizedLogistic(scale=scale, learned=False)
    levels = (torch.arange(256) / 255 * 2 - 1).view(1, 256, 1, 1)
    for mean in (-1.4, -1.0, 0.1234, 0.999):
        log_prob = likelihood.element_log_prob(torch.full_like(levels, mean), levels)
        assert log_prob.isfinite().all()  # published code clamps at log 1e-12, of which 256 would sum to more than 1
        assert float(log_prob.double().exp().sum()) == pytest.approx(1.0, abs=2e-5)
        edges = torch.arange(256, dtype=torch.float64) / 127.5 - 1 + 1 / 255
        cdf = torch.sigmoid((edges[:-1] - mean) / scale)
        expected = torch.diff(torch.cat([torch.zeros(1), cdf, torch.ones(1)]).double())
        assert torch.allclose(log_prob.exp().flatten().double(), expected, atol=1e-5)


def test_discretized_logistic_has_a_gradient_far_from_the_image() -> None:
    """In float32 the difference of the two sigmoids is 0 there."""
    far = torch.full((1, 1, 1, 1), -1.0, requires_grad=True)
    DiscretizedLogistic(scale=1e-3)(far, torch.full((1, 1, 1, 1), 0.5)).backward()
    assert float(far.grad) == pytest.approx(-1000, rel=1e-3)  # type: ignore[arg-type]  # -1/s


@pytest.mark.parametrize("cls", LIKELIHOODS)
def test_likelihood_contract(cls: type[Likelihood]) -> None:
    likelihood = cls()
    reconstructions, x = some_images()
    log_prob = likelihood.element_log_prob(reconstructions, x)
    assert log_prob.shape == x.shape
    torch.testing.assert_close(likelihood(reconstructions, x), -log_prob)
    torch.testing.assert_close(likelihood.log_prob(reconstructions, x), log_prob.sum(dim=(1, 2, 3)))
    assert not likelihood.is_discrete or bool((log_prob <= 0).all())
    double = likelihood.element_log_prob(reconstructions.double(), x.double())
    torch.testing.assert_close(log_prob.double(), double, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for parameter in likelihood.parameters():
            parameter.sub_(0.37)
    described = json.loads(json.dumps(describe_likelihood(likelihood)))
    torch.testing.assert_close(build_likelihood(described)(reconstructions, x), likelihood(reconstructions, x))
    many = reconstructions.repeat(4000, 1, 1, 1)
    drawn = likelihood.draw(many, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, likelihood.draw(many, torch.Generator().manual_seed(1)))
    assert (drawn.shape, drawn.requires_grad) == (many.shape, False)
    # The negative entropy by samples: of its own distribution, a likelihood is larger than of one that is moved.
    moved = (many + 0.3).clamp(-0.99, 0.99)
    assert likelihood.log_prob(many, drawn).mean() > likelihood.log_prob(moved, drawn).mean()
    mean = drawn.view(4000, 2, 1, 4, 4).mean(dim=0)
    assert (mean - reconstructions).abs().max() < 0.08  # 5 / sqrt(4000)
    with pytest.raises(UserError, match="may be missing"):
        likelihood.check(PixelSpec(channels=1, meaning="grey", bits=16, missing=0.0))


def test_learned_scale_has_the_gradient_of_the_direct_objective() -> None:
    reconstructions, x = some_images()
    for cls in (Gaussian, DiscretizedLogistic):
        likelihood = cls(scale=0.2)
        name, value = next(iter(likelihood.named_parameters()))
        step = 1e-3
        around = []
        for sign in (-1, 1):
            other = copy.deepcopy(likelihood).double()
            with torch.no_grad():
                getattr(other, name).add_(sign * step)
            around.append(other.log_prob(reconstructions.double(), x.double()).sum().item())
        likelihood.log_prob(reconstructions, x).sum().backward()
        assert float(value.grad) == pytest.approx((around[1] - around[0]) / (2 * step), rel=1e-4)  # type: ignore[arg-type]
        assert not [*cls(learned=False).parameters()]
        assert not cls(learned=False).state_dict()


def test_objective_owns_a_copy_and_reduces_in_nats() -> None:
    reconstructions, x = some_images()
    config = ObjectiveConfig(reduction="ldm", reconstruction=Gaussian(scale=0.5))
    objective = Objective(config, PixelSpec(channels=1, meaning="grey"))
    assert objective.likelihood is not None
    terms = objective.reconstruction(reconstructions, x)
    assert torch.allclose(terms.nll, -objective.likelihood.log_prob(reconstructions, x).mean())
    assert [*objective.state_dict()] == ["likelihood.log_variance"]
    assert objective.learned_values() == {"log_variance": pytest.approx(2 * math.log(0.5))}
    with torch.no_grad():
        objective.likelihood.log_variance.add_(1)
    assert config.reconstruction.init_args["scale"] == pytest.approx(0.5)  # type: ignore[attr-defined]


def test_combinations_without_a_meaning_are_refused() -> None:
    with pytest.raises(UserError, match="learned_log_variance has no place beside Bernoulli"):
        ObjectiveConfig(reconstruction=Bernoulli(), learned_log_variance=True)
    with pytest.raises(UserError, match=r"WeightedReconstruction\.errors: Gaussian is a likelihood"):
        WeightedReconstruction(errors=[Gaussian()])
    with pytest.raises(UserError, match=r"AlphaAware\.reconstruction: Gaussian is a likelihood"):
        AlphaAware(reconstruction=Gaussian())
    with pytest.raises(UserError, match="at least 8 bits, got floating point"):
        DiscretizedLogistic().check(PixelSpec(channels=1, meaning="grey", bits=0))
    for cls in (Gaussian, DiscretizedLogistic):
        with pytest.raises(UserError, match="expected a scale above 0"):
            cls(scale=0.0)


def test_model_folder_records_the_likelihood(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    model = KLAutoencoder.example("AutoencoderKL")
    assert model.likelihood is None
    before = model_hash(model)
    record_likelihood(model.net, Gaussian(scale=0.17))
    model.save_pretrained(tmp_path)
    found = load_autoencoder(tmp_path)
    assert isinstance(found.likelihood, Gaussian)
    assert found.likelihood.words == "Gaussian, scale 0.17, learned True"
    assert found.likelihood.init_args == {"scale": pytest.approx(0.17), "learned": True}
    assert not any(parameter.requires_grad for parameter in found.likelihood.parameters())
    assert model_hash(found) == before
    assert AutoencoderKL.from_pretrained(tmp_path).config["_likelihood"]["class_name"] == "Gaussian"
    record_likelihood(found.net, None)
    assert found.likelihood is None
    for damaged, message in (
        ({"class_name": "Gaussian"}, "expected a mapping"),
        ({"class_name": "L1", "init_args": {}}, "expected a likelihood, got"),
        ({"class_name": "Gaussian", "init_args": {"sigma": 1}}, "does not accept"),
    ):
        found.net.register_to_config(_likelihood=damaged)
        with pytest.raises(UserError, match=message):
            _ = found.likelihood
