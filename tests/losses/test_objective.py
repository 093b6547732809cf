from __future__ import annotations

import pytest
import torch

from ldm_ae.core.errors import UserError
from ldm_ae.images.pixels import RGBA
from ldm_ae.losses import (
    L1,
    L2,
    Charbonnier,
    HingeLoss,
    LatticeError,
    NonSaturatingLoss,
    Objective,
    ObjectiveConfig,
    OpponentL1,
    VanillaLoss,
    WeightedReconstruction,
)
from ldm_ae.models import GaussianPosterior


def test_reconstruction_losses_equal_hand_computed_values() -> None:
    x, y = torch.tensor([0.0, 0.5]), torch.tensor([0.3, 0.1])
    assert torch.allclose(L1()(x, y), torch.tensor([0.3, 0.4]))
    assert torch.allclose(L2()(x, y), torch.tensor([0.09, 0.16]))
    assert torch.allclose(Charbonnier(eps=0.4)(x, y), torch.tensor([0.5, 0.32**0.5]))


def test_opponent_colours_weigh_hue_and_not_brightness() -> None:
    grey, red_blue = (torch.tensor(error).view(1, 3, 1, 1) for error in ([0.3, 0.3, 0.3], [0.2, 0.0, -0.2]))
    zero = torch.zeros(1, 3, 1, 1)
    torch.testing.assert_close(OpponentL1()(grey, zero).flatten(), torch.tensor([0.3 * 3**0.5, 0.0, 0.0]))
    torch.testing.assert_close(OpponentL1()(red_blue, zero).flatten(), torch.tensor([0.0, 2 * 0.2 * 2**0.5, 0.0]))
    x, y = torch.rand(2, 1, 3, 4, 4)
    squares = OpponentL1(chroma_weight=1.0)(x, y).square()
    torch.testing.assert_close(squares.sum(dim=1), L2()(x, y).sum(dim=1))
    assert not OpponentL1(chroma_weight=0.0)(x, y)[:, 1:].any()


def test_opponent_colours_are_for_rgb_and_weights_of_at_least_zero() -> None:
    with pytest.raises(UserError, match="needs rgb images"):
        OpponentL1().check(RGBA)
    with pytest.raises(UserError, match="chroma_weight of at least 0, got -1"):
        OpponentL1(chroma_weight=-1.0)


def test_lattice_error_is_the_pattern_and_nothing_else() -> None:
    flat, edge = torch.full((1, 3, 70, 64), 0.2), torch.zeros(1, 3, 70, 64)
    edge[..., 40:] = 1.0
    pattern = 0.1 * torch.sin(2 * torch.pi * torch.arange(64) / 8).expand(1, 3, 70, 64)
    loss = LatticeError(period=8, flat=0.03)
    whole = loss(flat + pattern, flat)
    torch.testing.assert_close(whole[..., :64, :], pattern[..., :64, :].abs())  # two rows of windows
    assert not whole[..., 64:, :].any()
    assert loss(flat + 0.3, flat).max() < 1e-6  # a wrong level is no pattern
    longer = 0.1 * torch.sin(2 * torch.pi * torch.arange(64) / 16).expand(1, 3, 70, 64)
    assert loss(flat + longer, flat).max() < 1e-6
    # Windows without and with the edge, whose variance is 8 * 24 / 32^2.
    found = loss(edge + pattern, edge)[0, 0, 0]
    torch.testing.assert_close(found[:32], pattern[0, 0, 0, :32].abs())
    torch.testing.assert_close(found[32:], pattern[0, 0, 0, 32:].abs() / (1 + 8 * 24 / 32**2 / 0.03**2))


def test_lattice_error_refuses_images_below_a_window() -> None:
    with pytest.raises(UserError, match="needs images of at least 32x32 pixels, got 32x31"):
        LatticeError()(torch.zeros(1, 3, 32, 31), torch.zeros(1, 3, 32, 31))
    with pytest.raises(UserError, match="a period of at least 2 pixels, got 1"):
        LatticeError(period=1)
    with pytest.raises(UserError, match="flat above 0, got 0"):
        LatticeError(flat=0.0)


def test_sum_of_reconstruction_losses_weighs_each() -> None:
    x, y = torch.tensor([0.0, 0.5]), torch.tensor([0.3, 0.1])
    found = WeightedReconstruction(errors=[L1(), L2()], weights=[2.0, 0.5])(x, y)
    assert torch.allclose(found, torch.tensor([0.645, 0.88]))
    assert torch.allclose(WeightedReconstruction(errors=[L1(), L2()])(x, y), torch.tensor([0.39, 0.56]))


@pytest.mark.parametrize(
    ("losses", "weights", "words"),
    [
        ([], None, "one weight for each loss, got 0 losses and 0 weights"),
        ([L1()], [1.0, 2.0], "one weight for each loss, got 1 losses and 2 weights"),
        ([L1()], [-1.0], r"weights of at least 0, got \[-1.0\]"),
        ([L1()], [float("nan")], r"weights of at least 0, got \[nan\]"),
    ],
)
def test_sum_of_reconstruction_losses_refuses(losses: list[L1], weights: list[float] | None, words: str) -> None:
    with pytest.raises(UserError, match=words):
        WeightedReconstruction(errors=losses, weights=weights)


def test_charbonnier_has_a_gradient_of_zero_at_zero() -> None:
    x = torch.zeros(3, requires_grad=True)
    Charbonnier()(x, torch.zeros(3)).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros(3))


def test_adversarial_losses_equal_hand_computed_values() -> None:
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 0.5])
    assert HingeLoss().discriminator(real, fake) == pytest.approx(0.5 * (0.5 + 0.75))
    assert HingeLoss().generator(fake) == pytest.approx(0.75)
    softplus = torch.nn.functional.softplus
    expected = 0.5 * (softplus(-real).mean() + softplus(fake).mean())
    assert torch.allclose(VanillaLoss().discriminator(real, fake), expected)
    assert torch.allclose(NonSaturatingLoss().discriminator(real, fake), expected)
    assert VanillaLoss().generator(fake) == pytest.approx(0.75)
    assert torch.allclose(NonSaturatingLoss().generator(fake), softplus(-fake).mean())


@pytest.mark.parametrize("loss", [HingeLoss(), VanillaLoss(), NonSaturatingLoss()])
def test_generator_and_discriminator_gradients_have_opposite_signs(loss: HingeLoss) -> None:
    fake = torch.zeros(4, requires_grad=True)
    (for_generator,) = torch.autograd.grad(loss.generator(fake), fake)
    (for_discriminator,) = torch.autograd.grad(loss.discriminator(torch.zeros(4), fake), fake)
    assert (for_generator < 0).all()
    assert (for_discriminator > 0).all()


def test_ldm_reduction_sums_over_an_image() -> None:
    x, y = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    ldm = Objective(ObjectiveConfig(reduction="ldm")).reconstruction(x, y)
    mean = Objective(ObjectiveConfig(reduction="mean")).reconstruction(x, y)
    assert torch.allclose(ldm.nll, (x - y).abs().sum() / 2)
    assert torch.allclose(mean.nll, (x - y).abs().mean())
    assert torch.equal(ldm.rec_loss, mean.rec_loss)


def test_kl_weight_converts_between_reductions() -> None:
    """1e-6 in `ldm` equals 2.08e-8 in `mean` for f8c4, as documented: both give the same trade-off."""
    size, latents = 64, torch.randn(2, 4, 8, 8)
    terms = {"kl": torch.tensor([30.0, 50.0])}
    ldm = Objective(ObjectiveConfig(reduction="ldm", regularization_weights={"kl": 1e-6})).regularization(
        terms, latents
    )
    in_mean = 1e-6 * latents[0].numel() / (3 * size * size)
    assert in_mean == pytest.approx(2.083e-8, rel=1e-3)
    mean = Objective(ObjectiveConfig(regularization_weights={"kl": in_mean})).regularization(terms, latents)
    assert torch.allclose(ldm / (3 * size * size), mean)


def test_kl_equals_torch_distributions() -> None:
    moments = torch.randn(2, 8, 4, 4)
    posterior = GaussianPosterior(moments)
    q = torch.distributions.Normal(posterior.mean, torch.exp(0.5 * posterior.log_variance))
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(dim=(1, 2, 3))
    assert torch.allclose(posterior.regularization()["kl"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gan_weight": -1.0}, "gan_weight is -1.0"),
        ({"perceptual_weight": -0.1}, "perceptual_weight is -0.1"),
        ({"discriminator_start": -5}, "discriminator_start is -5"),
    ],
)
def test_invalid_values_are_refused(changes: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ObjectiveConfig(**changes)  # type: ignore[arg-type]
