"""Perceptual distances compared with their packages, and the invariants of a frozen network."""

from __future__ import annotations

import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldm_ae.core.convolutions import Conv2d, speed_up
from ldm_ae.core.dry_run import RefusedError, dry_run
from ldm_ae.core.errors import UserError
from ldm_ae.losses import LPIPS, FeatureDistance, PerceptualLoss, ShiftTolerantLPIPS
from ldm_ae.losses.perceptual import _feature_distance as perceptual_module
from ldm_ae.losses.perceptual.interface import try_size
from ldm_ae.training.steps import generator_step
from tests.training.common import make_batches, make_parts

# Two float32 implementations add the same numbers in another order: about 1e-6 after thirteen convolutions.
FLOAT32 = 1e-5

needs_stlpips = pytest.mark.skipif(
    importlib.util.find_spec("stlpips_pytorch") is None, reason="the wheel stlpips-pytorch is not installed"
)


def pictures(batch: int = 2, size: int = 64) -> tuple[Tensor, Tensor]:
    """Reconstructions and pixel_values."""
    pixel_values = nn.functional.interpolate(torch.rand(batch, 3, 8, 8) * 2 - 1, size=(size, size), mode="bilinear")
    return pixel_values + 0.2 * torch.randn(pixel_values.shape), pixel_values


def distance_and_gradient(
    loss: Callable[[Tensor, Tensor], Tensor], reconstructions: Tensor, pixel_values: Tensor
) -> tuple[Tensor, Tensor]:
    """Distances (B,), and the gradient of a sum that weighs each image differently."""
    leaf = reconstructions.clone().requires_grad_()
    distances = loss(leaf, pixel_values).flatten()
    (gradient,) = torch.autograd.grad((distances * torch.arange(1.0, len(distances) + 1)).sum(), leaf)
    return distances.detach(), gradient


def relative_error(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).norm() / expected.norm())


def lpips_package(ours: LPIPS, net: str) -> nn.Module:
    """The lpips package's module with our trunk; the channel weights are its own."""
    import lpips

    with warnings.catch_warnings():  # it passes arguments that torchvision has deprecated
        warnings.simplefilter("ignore")
        theirs = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    convolutions = [[m for m in part.modules() if isinstance(m, nn.Conv2d)] for part in (ours, theirs.net)]
    for mine, other in zip(*convolutions, strict=True):
        nn.init.normal_(mine.bias, std=0.1)  # zero as built, which would hide a bias that is lost
        other.load_state_dict(mine.state_dict())
    return theirs


def stlpips_package(net: str, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """The stlpips_pytorch package's module, with stand-ins for its imports that the tests do not use."""
    for name, attribute in (("IPython", "embed"), ("torchsummary", "summary")):
        stand_in = types.ModuleType(name)
        setattr(stand_in, attribute, None)
        monkeypatch.setitem(sys.modules, name, stand_in)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from stlpips_pytorch import stlpips

        return stlpips.LPIPS(net=net, variant="shift_tolerant", verbose=False)


def toy(*stages: nn.Module, channels: tuple[int, ...]) -> FeatureDistance:
    return FeatureDistance("toy", stages, [torch.rand(count) for count in channels])


@pytest.mark.parametrize("net", [pytest.param("vgg", marks=pytest.mark.slow), "alex", "squeeze"])
def test_lpips_equals_the_lpips_package(net: Literal["vgg", "alex", "squeeze"]) -> None:
    ours = LPIPS(net=net, pretrained=False)
    theirs = lpips_package(ours, net)
    pair = pictures()
    distances, gradient = distance_and_gradient(ours, *pair)
    expected, expected_gradient = distance_and_gradient(theirs, *pair)
    assert distances.shape == (2,)
    assert expected.min() > 1e-3
    assert relative_error(distances, expected) < FLOAT32
    assert relative_error(gradient, expected_gradient) < FLOAT32


@needs_stlpips
@pytest.mark.parametrize("net", [pytest.param("vgg", marks=pytest.mark.slow), "alex"])
def test_stlpips_equals_the_stlpips_package(net: Literal["vgg", "alex"], monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = stlpips_package(net, monkeypatch)
    pair = pictures()
    distances, gradient = distance_and_gradient(ShiftTolerantLPIPS(net=net), *pair)
    expected, expected_gradient = distance_and_gradient(theirs, *pair)
    assert expected.min() > 1e-2
    assert relative_error(distances, expected) < FLOAT32
    assert relative_error(gradient, expected_gradient) < FLOAT32


def test_chunked_layers_equal_whole_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = LPIPS(net="squeeze", pretrained=False)
    pair = pictures(batch=3)
    whole = distance_and_gradient(loss, *pair)
    monkeypatch.setattr(perceptual_module, "CACHED_ELEMENTS", 7001)  # does not divide the rows of any layer
    pieces = distance_and_gradient(loss, *pair)
    for value, expected in zip(pieces, whole, strict=True):
        assert relative_error(value, expected) < 1e-6  # the same arithmetic; sums over positions in another order


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("which", ["both", "reconstruction", "real"])
def test_zero_features_yield_finite_distances_and_gradients(dtype: torch.dtype, which: str) -> None:
    # The stage passes its input on; the scaling layer maps a pixel of colour SHIFT to zeros in all channels.
    loss = toy(nn.Identity(), channels=(3,)).set_precision(dtype)
    reconstructions, pixel_values = pictures(batch=1, size=8)
    for name, images in (("reconstruction", reconstructions), ("real", pixel_values)):
        if which in ("both", name):
            images[..., 3, 4] = loss.shift[0, :, 0, 0]
    distances, gradient = distance_and_gradient(loss, reconstructions, pixel_values)
    assert distances.isfinite().all()
    assert distances.min() > 0
    assert gradient.isfinite().all()
    at_zero = gradient[..., 3, 4].abs().max()
    assert at_zero > 0 if which == "real" else at_zero == 0
    assert gradient[..., 2, 2].abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_all_zero_layers_have_distance_zero(dtype: torch.dtype) -> None:
    convolution = nn.Conv2d(3, 4, 3)
    nn.init.constant_(convolution.bias, -1e3)
    loss = toy(nn.Sequential(convolution, nn.ReLU()), channels=(4,)).set_precision(dtype)
    distances, gradient = distance_and_gradient(loss, *pictures(size=8))
    assert torch.equal(distances, torch.zeros(2))
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_images_have_distance_zero(dtype: torch.dtype) -> None:
    loss = LPIPS(net="alex", pretrained=False).set_precision(dtype)
    _, pixel_values = pictures()
    assert torch.equal(loss(pixel_values, pixel_values), torch.zeros(2))


def test_only_reconstructions_receive_a_gradient() -> None:
    loss = LPIPS(net="squeeze", pretrained=False).train()
    reconstructions, pixel_values = (image.requires_grad_() for image in pictures())
    loss(reconstructions, pixel_values).sum().backward()
    assert reconstructions.grad is not None
    assert reconstructions.grad.abs().max() > 0
    assert pixel_values.grad is None
    assert [p.grad for p in loss.parameters() if p.grad is not None or p.requires_grad] == []


def test_features_of_real_images_have_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = LPIPS(net="squeeze", pretrained=False)
    with_graph: list[list[bool]] = []
    original = loss.features

    def recorded(images: Tensor) -> Iterator[Tensor]:
        with_graph.append([])
        for layer in original(images):
            with_graph[-1].append(layer.requires_grad)
            yield layer

    monkeypatch.setattr(loss, "features", recorded)
    reconstructions, pixel_values = (image.requires_grad_() for image in pictures())
    assert loss(reconstructions, pixel_values).requires_grad
    assert with_graph == [[False] * 7, [True] * 7]


def test_perceptual_loss_stays_in_eval_mode() -> None:
    loss = LPIPS(net="alex", pretrained=False)
    holder = nn.Sequential(loss).train()
    assert holder.training
    assert not any(module.training for module in loss.modules())


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_is_near_float32(autocast: bool) -> None:
    loss = LPIPS(net="vgg", pretrained=False)
    pair = pictures(size=32)  # where bfloat16 is emulated, larger ones take seconds
    distances, gradient = distance_and_gradient(loss, *pair)
    loss.set_precision(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):  # makes no difference: the network has its own dtype
        near, near_gradient = distance_and_gradient(loss, *pair)
    assert near.dtype == near_gradient.dtype == torch.float32
    # Features keep 8 bits, so each is off by up to 0.4 %; most of that averages out.
    assert relative_error(near, distances) < 0.01
    assert nn.functional.cosine_similarity(near_gradient.flatten(), gradient.flatten(), dim=0) > 0.97


def test_missing_weights_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError) as caught:
        LPIPS(net="vgg")
    message = str(caught.value)
    assert "vgg16-397923af.pth" in message
    assert str(tmp_path) in message
    assert "ShiftTolerantLPIPS" in message
    assert "\n" not in message


def test_damaged_weights_file_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match=path.name) as caught:
        LPIPS(net="alex")
    assert "\n" not in str(caught.value)


def test_pretrained_weights_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    source = LPIPS(net="squeeze", pretrained=False)
    layers = [layer for stage in source.stages for layer in stage]
    weights = nn.Sequential(*layers).state_dict()
    path = tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    path.parent.mkdir(parents=True)
    torch.save(
        {f"features.{name}": value for name, value in weights.items()} | {"classifier.1.bias": torch.ones(3)}, path
    )
    pair = pictures()
    assert torch.equal(LPIPS(net="squeeze")(*pair), source(*pair))


class LogitDistance(PerceptualLoss):
    """A loss of a contributor who writes nothing but this: one network without stages, and a factor of its own."""

    def __init__(self) -> None:
        super().__init__("logits")
        self.network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten())
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        logits, target = (self.network(images.to(self.dtype)).float() for images in (reconstructions, pixel_values))
        return self.factor * (logits - target).square().mean(dim=1)


class SumOfDistances(PerceptualLoss):
    """A sum of losses, each of which keeps its float32 parts."""

    def __init__(self, *losses: PerceptualLoss) -> None:
        super().__init__("+".join(loss.name for loss in losses))
        for number, loss in enumerate(losses):
            self.add_module(str(number), loss)

    def forward(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        return torch.stack([loss(reconstructions, pixel_values) for loss in self.children()]).sum(dim=0)


def test_perceptual_losses_are_built_frozen_and_in_eval_mode() -> None:
    loss = LogitDistance()
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    assert not any(module.training for module in loss.modules())
    loss.train()
    assert not any(module.training for module in loss.modules())
    pair = pictures()
    assert torch.equal(loss(*pair), loss(*pair))  # no dropout, no running statistics
    assert loss.network[1].num_batches_tracked == 0


def test_set_precision_casts_only_networks() -> None:
    loss = SumOfDistances(LogitDistance(), toy(nn.Conv2d(3, 4, 3), channels=(4,)))
    pair = pictures()
    expected = loss(*pair)
    assert loss.set_precision(torch.bfloat16) is loss
    dtypes = {name: tensor.dtype for name, tensor in [*loss.named_parameters(), *loss.named_buffers()]}
    assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == {
        "0.factor", "1.shift", "1.scale", "1.head_0"
    }  # fmt: skip
    assert dtypes["0.network.0.weight"] == dtypes["1.stages.0.weight"] == torch.bfloat16
    found = loss(*pair)
    assert found.dtype == torch.float32
    assert relative_error(found, expected) < 0.02  # bfloat16 keeps 8 bits


def test_loss_without_stages_works_in_training() -> None:
    """The step, the check of sizes and the fast convolutions take any loss."""
    loss = LogitDistance()
    with pytest.raises(RefusedError, match="Kernel size can't be greater"):
        dry_run(loss, try_size, [(2, 3, 2, 2)])
    speed_up(loss)
    assert type(loss.network[0]) is Conv2d
    parts = make_parts(Accelerator(cpu=True), perceptual=loss, discriminator=False)
    batches = make_batches(1, 2)
    _, logs = generator_step(parts, batches, step=0)
    with torch.no_grad():
        reconstructions = parts.plain_autoencoder(batches[0].pixel_values, batches[0].noise).reconstructions
    assert logs["perceptual_loss"] == pytest.approx(float(loss(reconstructions, batches[0].pixel_values).mean()))
