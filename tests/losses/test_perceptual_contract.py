"""What every perceptual loss must fulfil."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor, nn

from ldm_ae.features import FeatureNetwork
from ldm_ae.losses import LPIPS, PERCEPTUAL_LOSSES, PerceptualLoss, ShiftTolerantLPIPS

CLASSES = PERCEPTUAL_LOSSES.classes()
OF_TRANSFORMERS = ("DeepFeatures", "GramDistance", "LogitDistance", "WeightedSum")
"""Losses whose examples have networks of that package."""


@pytest.fixture
def loss(request: pytest.FixtureRequest) -> PerceptualLoss:
    cls: type[PerceptualLoss] = request.param
    if cls is ShiftTolerantLPIPS and importlib.util.find_spec("stlpips_pytorch") is None:
        pytest.skip("the wheel stlpips-pytorch is not installed")
    if cls.__name__ in OF_TRANSFORMERS:
        pytest.importorskip("transformers")
    return cls.example()


def pictures(batch: int = 2, size: tuple[int, int] = (176, 192)) -> tuple[Tensor, Tensor]:
    """Reconstructions and pixel values of 176x192 pixels, the least that MS-SSIM accepts in one side."""
    coarse = torch.rand(batch, 3, 11, 12) * 1.6 - 0.8
    pixel_values = nn.functional.interpolate(coarse, size=size, mode="bilinear")
    return pixel_values + 0.1 * torch.randn(pixel_values.shape), pixel_values


def gradient(loss: PerceptualLoss, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
    leaf = reconstructions.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(leaf, pixel_values).sum(), leaf)
    return found


every = pytest.mark.parametrize("loss", CLASSES, indirect=True, ids=lambda cls: cls.__name__)


@every
def test_distances_are_positive_and_zero_for_equal_images(loss: PerceptualLoss) -> None:
    reconstructions, pixel_values = pictures()
    distances = loss(reconstructions, pixel_values)
    assert distances.shape == (2,)
    assert distances.dtype == torch.float32
    assert distances.min() > 0
    assert loss(pixel_values, pixel_values).abs().max() < 1e-6  # rounding of float32


@every
def test_distance_falls_along_its_gradient(loss: PerceptualLoss) -> None:
    reconstructions, pixel_values = pictures()
    slope = gradient(loss, reconstructions, pixel_values)
    assert slope.isfinite().all()
    assert (slope.abs().amax(dim=(1, 2, 3)) > 0).all()
    unit = slope / slope.flatten(1).norm(dim=1)[:, None, None, None]
    step = 0.01 * (reconstructions - pixel_values).flatten(1).norm(dim=1)[:, None, None, None]
    assert (loss(reconstructions - step * unit, pixel_values) < loss(reconstructions, pixel_values)).all()


@every
def test_images_of_a_batch_do_not_affect_each_other(loss: PerceptualLoss) -> None:
    reconstructions, pixel_values = pictures()
    both = loss(reconstructions, pixel_values)
    first = loss(reconstructions[:1], pixel_values[:1])
    torch.testing.assert_close(both[:1], first, rtol=1e-4, atol=1e-6)  # float32 sums in another order


@every
def test_real_images_get_no_gradient_and_no_graph(loss: PerceptualLoss, monkeypatch: pytest.MonkeyPatch) -> None:
    with_graph: list[bool] = []
    for module in loss.modules():
        if isinstance(module, FeatureNetwork):
            module.register_forward_hook(lambda *arguments: with_graph.append(arguments[-1][-1].requires_grad))
    reconstructions, pixel_values = (images.requires_grad_() for images in pictures(1))
    loss(reconstructions, pixel_values.detach()).sum().backward()
    assert reconstructions.grad is not None
    assert pixel_values.grad is None
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    assert with_graph in ([], [False, True])


@pytest.mark.slow
@every
def test_precision_of_the_network_is_its_own(loss: PerceptualLoss) -> None:
    """Autocast makes no difference, and bfloat16 little."""
    # Where bfloat16 is emulated, a large network takes seconds for large images.
    pair = pictures(size=(64, 80)) if isinstance(loss, (LPIPS, ShiftTolerantLPIPS)) else pictures()
    distances, slope = loss(*pair), gradient(loss, *pair)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(*pair), distances)
    loss.set_precision(torch.bfloat16)
    near = loss(*pair)
    assert near.dtype == torch.float32
    assert float((near - distances).norm() / distances.norm()) < 0.1  # features keep 8 bits, through many layers
    assert nn.functional.cosine_similarity(gradient(loss, *pair).flatten(), slope.flatten(), dim=0) > 0.9


@every
def test_terms_of_a_sum_add_up(loss: PerceptualLoss) -> None:
    pair = pictures()
    distances, terms = loss.measure(*pair)
    assert torch.equal(distances, loss(*pair))
    weights = getattr(loss, "weights", [])
    assert len(terms) == len(weights)
    if terms:
        total = sum(weight * term for weight, term in zip(weights, terms.values(), strict=True))
        torch.testing.assert_close(distances, total)


def test_names_differ_and_identities_name_the_weights() -> None:
    pytest.importorskip("transformers")
    names = []
    for cls in CLASSES:
        if cls is ShiftTolerantLPIPS:  # its weights come from a wheel
            continue
        loss = cls.example()
        names.append(loss.name)
        for network in loss.children():
            if isinstance(network, FeatureNetwork):
                assert network.identity in loss.identity
    assert len(set(names)) == len(names)
