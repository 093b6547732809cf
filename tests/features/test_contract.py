"""What every feature network must fulfil."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from ldm_ae.core.errors import UserError
from ldm_ae.features import FEATURE_NETWORKS, FeatureNetwork
from ldm_ae.features._transformers import TransformersNetwork

CLASSES = FEATURE_NETWORKS.classes()
OF_TRANSFORMERS = [cls for cls in CLASSES if issubclass(cls, TransformersNetwork)]


@pytest.fixture(autouse=True)
def _needs_transformers(request: pytest.FixtureRequest) -> None:
    cls = request.getfixturevalue("cls")
    if issubclass(cls, TransformersNetwork):
        transformers = pytest.importorskip("transformers")
        if not hasattr(transformers, next(iter(cls.model_types.values())).model):
            pytest.skip(f"this version of transformers does not have {cls.__name__}")


def images(batch: int = 2, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.rand(batch, 3, height, width) * 2 - 1


@pytest.mark.parametrize("cls", CLASSES)
def test_maps_have_the_declared_channels_and_become_coarser(cls: type[FeatureNetwork]) -> None:
    network = cls.example()
    for height, width in ((64, 64), (70, 45)):  # no patch divides the second size
        maps = network(images(2, height, width))
        assert tuple(features.shape[1] for features in maps) == network.channels
        sizes = [features.shape[2] * features.shape[3] for features in maps]
        assert sizes == sorted(sizes, reverse=True)
        assert all(features.shape[0] == 2 and features.dtype == torch.float32 for features in maps)
        assert all(features.isfinite().all() and features.std() > 0 for features in maps)


@pytest.mark.parametrize("cls", CLASSES)
def test_network_is_frozen_and_stays_in_eval_mode(cls: type[FeatureNetwork]) -> None:
    network = cls.example()
    holder = nn.Sequential(network).train()
    assert holder.training
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network(images())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("cls", CLASSES)
def test_gradients_of_every_map_reach_the_images(cls: type[FeatureNetwork]) -> None:
    network, x = cls.example(), images().requires_grad_()
    for features in network(x):
        weights = torch.rand(features.shape)  # a sum alone is constant after a normalization
        (gradient,) = torch.autograd.grad((features * weights).sum(), x, retain_graph=True)
        assert gradient.isfinite().all()
        assert (gradient.abs().amax(dim=(1, 2, 3)) > 0).all()


@pytest.mark.parametrize("cls", CLASSES)
def test_images_do_not_affect_each_other(cls: type[FeatureNetwork]) -> None:
    network, x = cls.example(), images()
    for both, first in zip(network(x), network(x[:1]), strict=True):
        torch.testing.assert_close(both[:1], first, rtol=1e-4, atol=1e-5)  # float32 sums in another order


@pytest.mark.parametrize("cls", CLASSES)
def test_random_weights_are_the_same_everywhere_and_are_stated(
    cls: type[FeatureNetwork], caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(1)
    with caplog.at_level(logging.WARNING, logger="ldm_ae"):
        first = cls.example()
    assert f"{cls.__name__} has random weights" in caplog.text
    assert "random weights" in first.identity
    after = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), after)  # the global generator is untouched
    second, x = cls.example(), images()
    assert first.identity == second.identity
    assert all(torch.equal(a, b) for a, b in zip(first(x), second(x), strict=True))


@pytest.mark.parametrize("cls", CLASSES)
def test_logits_exist_where_the_class_declares_a_classifier(cls: type[FeatureNetwork]) -> None:
    network, x = cls.example(), images().requires_grad_()
    if not network.has_classifier:
        with pytest.raises(UserError, match="has no classifier; use a network with one"):
            network.logits(x)
        return
    logits = network.logits(x)
    assert logits.ndim == 2
    assert logits.dtype == torch.float32
    (gradient,) = torch.autograd.grad(logits.square().sum(), x)
    assert (gradient.abs().amax(dim=(1, 2, 3)) > 0).all()


@pytest.mark.parametrize("cls", CLASSES)
def test_precision_casts_weights_once_and_keeps_the_normalization(cls: type[FeatureNetwork]) -> None:
    network, x = cls.example(), images()
    expected = [features.float() for features in network(x)]
    network.set_precision(torch.bfloat16)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
    assert network.shift.dtype == network.scale.dtype == torch.float32
    for features, right in zip(network(x), expected, strict=True):
        assert features.dtype == torch.bfloat16
        assert float((features.float() - right).norm() / right.norm()) < 0.1  # 8 bits, through several layers


@pytest.mark.parametrize("cls", CLASSES)
def test_state_dict_holds_weights_alone(cls: type[FeatureNetwork]) -> None:
    assert all(name.startswith("network.") for name in cls.example().state_dict())


@pytest.mark.parametrize("cls", CLASSES)
def test_fixed_size_gives_maps_of_one_size(cls: type[FeatureNetwork]) -> None:
    network = cls.example()
    network.image_size = 64
    shapes = [[tuple(f.shape) for f in network(images(1, *size))] for size in ((64, 64), (50, 90), (30, 20))]
    assert shapes[0] == shapes[1] == shapes[2]


@pytest.mark.parametrize("cls", OF_TRANSFORMERS)
def test_missing_weights_are_refused_in_one_line(cls: type[TransformersNetwork]) -> None:
    for build in (cls, lambda: cls(weights="./nowhere/weights"), lambda: cls(weights="hf:owner/no-such-network")):  # type: ignore[call-arg]
        with pytest.raises(UserError, match=f"the weights of {cls.__name__} are missing: ") as caught:
            build()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cls", CLASSES)
def test_layers_choose_maps_and_end_the_computation(cls: type[FeatureNetwork]) -> None:
    kwargs = {"architecture": cls.example().network.config.to_diff_dict()} if cls in OF_TRANSFORMERS else {}
    full = cls(weights=None, layers=[0, 1, -1], **kwargs)  # type: ignore[call-arg]
    some = cls(weights=None, layers=[1, 0], **kwargs)  # type: ignore[call-arg]
    x = images()
    assert some.channels == full.channels[:2]
    for features, right in zip(some(x), full(x), strict=False):
        assert torch.equal(features, right)
    assert len(some(x)) == 2
    assert not some.has_classifier
    computed = sum(1 for _ in _called(some, x))
    assert computed < sum(1 for _ in _called(full, x))
    with pytest.raises(UserError, match=r"layers: expected numbers from 0 to \d+ .*, got \[99\]"):
        cls(weights=None, layers=[99], **kwargs)  # type: ignore[call-arg]


def _called(network: nn.Module, x: torch.Tensor) -> list[nn.Module]:
    """The modules that a forward pass calls."""
    found: list[nn.Module] = []
    handles = [m.register_forward_hook(lambda module, *_: found.append(module)) for m in network.modules()]
    network(x)
    for handle in handles:
        handle.remove()
    return found
