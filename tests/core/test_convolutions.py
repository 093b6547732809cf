"""Convolutions of our own against torch's in float64, and networks that use them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ldm_ae.core import convolutions
from ldm_ae.core.convolutions import Conv2d, speed_up
from ldm_ae.core.precision import Placement, place
from ldm_ae.losses import LPIPS
from ldm_ae.models import KLAutoencoder

TOLERANCE = 1e-5
"""Of a result's norm. Winograd's algorithm in float32 has an error of about 3e-6, a direct convolution of 1e-6."""


def error(found: Tensor, right: Tensor) -> float:
    """Relative to the norm of the right value."""
    return ((found.double() - right).norm() / right.norm()).item()


def results(function: object, tensors: list[Tensor], gradient: Tensor) -> list[Tensor]:
    """The output and the gradients at all tensors."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    output = function(*leaves)  # type: ignore[operator]
    return [output.detach(), *torch.autograd.grad(output, leaves, gradient)]


@pytest.mark.parametrize(
    ("shape", "filters", "kernel", "stride", "padding"),
    [
        ((1, 256, 32, 32), 256, 3, 1, 1),  # Winograd's, all rows of tiles of one image at once
        ((5, 256, 16, 20), 264, 3, 1, 1),  # several images at once, a single one in the last chunk
        # A few rows of tiles at once, fewer in the last chunk.
        pytest.param((1, 256, 72, 128), 256, 3, 1, 1, marks=pytest.mark.slow),
        ((2, 128, 32, 32), 160, 3, 1, 1),  # Winograd only for the weight gradient
        ((1, 256, 30, 36), 256, 3, 1, 1),  # no whole tiles
        ((2, 256, 8, 8), 256, 3, 1, 1),  # few pixels
        ((2, 3, 17, 12), 8, 3, 1, 1),
        ((2, 8, 17, 17), 4, 3, 2, 0),  # a downsampler of diffusers, which pads before
        ((2, 3, 16, 18), 8, 4, 2, 1),  # a PatchGAN's
    ],
)
def test_outputs_and_gradients_equal_float64(
    shape: tuple[int, ...], filters: int, kernel: int, stride: int, padding: int
) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    tensors = [draw(*shape), draw(filters, shape[1], kernel, kernel), draw(filters)]
    settings = {"stride": (stride, stride), "padding": (padding, padding)}
    gradient = torch.randn_like(functional.conv2d(*tensors, **settings))
    right = results(lambda *leaves: functional.conv2d(*leaves, **settings), tensors, gradient)
    for layout in (torch.contiguous_format, torch.channels_last):
        given = [tensor.float() for tensor in tensors]
        given[0] = given[0].contiguous(memory_format=layout)
        found = results(lambda *leaves: convolutions.conv2d(*leaves, **settings), given, gradient.float())
        assert [value.shape for value in found] == [value.shape for value in right]
        assert max(map(error, found, right)) < TOLERANCE


@pytest.mark.parametrize(
    ("channels", "size", "expected"), [(256, 32, True), (256, 34, False), (256, 28, False), (128, 32, False)]
)
def test_winograd_is_used_for_wide_and_large_layers(channels: int, size: int, expected: bool) -> None:
    # A direct sum of zeros and one pixel is exact; Winograd's fractions are not, unless they cancel.
    inputs = torch.zeros(1, channels, size, size)
    inputs[0, 0, 5, 5] = 1 / 3
    weight = torch.full((channels, channels, 3, 3), 1 / 7)
    exact = functional.conv2d(inputs, weight, padding=1)
    assert torch.equal(convolutions.convolve(inputs, weight, None), exact) is not expected


def test_unneeded_gradients_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("input_gradient", "weight_gradient"):
        plain = getattr(convolutions, name)
        monkeypatch.setattr(convolutions, name, lambda *a, n=name, f=plain: calls.append(n) or f(*a))
    inputs, weight = torch.randn(1, 4, 8, 8), torch.randn(4, 4, 3, 3)
    convolutions.conv2d(inputs, weight.clone().requires_grad_()).sum().backward()
    convolutions.conv2d(inputs.clone().requires_grad_(), weight).sum().backward()
    assert calls == ["weight_gradient", "input_gradient"]


def test_second_derivative_is_refused() -> None:
    inputs = torch.randn(1, 4, 8, 8, requires_grad=True)
    weight = torch.randn(4, 4, 3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(convolutions.conv2d(inputs, weight).square().sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.slow
def test_speed_up_keeps_parameters_keys_and_gradients_of_an_autoencoder() -> None:
    torch.manual_seed(0)
    model = KLAutoencoder(block_out_channels=(32, 256), layers_per_block=1, norm_num_groups=8)
    plain = copy.deepcopy(model)
    names, objects = list(model.state_dict()), list(map(id, model.parameters()))
    place(model, torch.device("cpu"), Placement("channels_last", "winograd"))
    assert (list(model.state_dict()), list(map(id, model.parameters()))) == (names, objects)
    kinds = {layer.kernel_size: type(layer) for layer in model.modules() if isinstance(layer, nn.Conv2d)}
    assert kinds == {(3, 3): Conv2d, (1, 1): nn.Conv2d}
    pixel_values = torch.rand(1, 3, 64, 64) * 2 - 1
    for network in (model, plain):
        network.decode(network.encode(pixel_values).mode()).square().mean().backward()
    for (name, found), right in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert found.grad is not None
        assert right.grad is not None
        # Through 30 layers rounding adds up; biases before a normalization have a gradient of zero.
        scale = max(right.grad.norm().item(), 1e-4)
        assert (found.grad - right.grad).norm().item() / scale < 1e-3, name


def test_copies_and_half_precision_match_torch() -> None:
    layer = Conv2d.of(nn.Conv2d(4, 6, 3, padding=1))
    inputs = torch.randn(2, 4, 8, 8)
    right = functional.conv2d(inputs, layer.weight, layer.bias, padding=1)
    assert torch.equal(copy.deepcopy(layer)(inputs), right)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(inputs).dtype == torch.bfloat16
    assert layer.to(torch.bfloat16)(inputs.bfloat16()).dtype == torch.bfloat16


@pytest.mark.slow
def test_kernels_of_frozen_layers_are_kept_until_the_weight_changes() -> None:
    layer = Conv2d.of(nn.Conv2d(256, 256, 3, padding=1).requires_grad_(False))
    inputs = torch.randn(1, 256, 32, 32, requires_grad=True)
    outputs = []
    for change in (lambda: None, lambda: layer.weight.mul_(2), lambda: setattr(layer.weight, "data", layer.weight * 2)):
        change()
        for _ in range(2):
            output = layer(inputs)
            outputs.append([output.detach(), torch.autograd.grad(output.sum(), inputs)[0]])
        right = functional.conv2d(inputs.double(), layer.weight.double(), layer.bias.double(), padding=1)
        assert error(output, right) < TOLERANCE
        assert torch.equal(outputs[-1][1], outputs[-2][1])
        assert error(outputs[-1][1], torch.autograd.grad(right.sum(), inputs)[0].double()) < TOLERANCE
    kept = layer._kernels._forward
    layer(inputs)
    assert layer._kernels._forward is kept
    layer.requires_grad_(True)
    layer.weight.data.zero_()  # neither the version nor the place shows this change
    assert layer(inputs).sub(layer.bias.view(1, -1, 1, 1)).abs().max() < 1e-6


def test_trainable_layer_caches_no_kernels() -> None:
    layer, inputs = Conv2d.of(nn.Conv2d(256, 256, 3, padding=1)), torch.randn(1, 256, 32, 32, requires_grad=True)
    assert layer(inputs).grad_fn.kernels is None  # until the backward pass they would be 4 times its weight
    layer.requires_grad_(False)  # as in the pass that differentiates only the last layer
    assert layer(inputs).grad_fn.kernels is None
    assert layer._kernels is None


def test_unsupported_convolutions_are_not_replaced() -> None:
    kinds = [
        nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, dilation=2), nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.Conv2d(4, 4, 3, padding="same"),
    ]  # fmt: skip
    network = nn.Sequential(*kinds)
    speed_up(network)
    assert all(found is kind for found, kind in zip(network, kinds, strict=True))


@pytest.mark.slow
def test_perceptual_loss_equals_that_of_torch_convolutions() -> None:
    torch.manual_seed(0)
    loss = LPIPS(net="vgg", pretrained=False)
    plain, pair = copy.deepcopy(loss), torch.rand(2, 4, 3, 64, 64) * 2 - 1
    speed_up(loss)
    found, right = (network(*pair) for network in (loss, plain))
    assert torch.allclose(found, right, rtol=1e-4)
