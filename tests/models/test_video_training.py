"""Training of autoencoders of video with single images, and the gradients of their convolutions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from ldm_ae.models.adapters._video_networks import VIDEO_NETWORKS
from ldm_ae.models.adapters.video import VideoAutoencoder
from tests.models.examples import SLOW_VIDEO, skip_if_missing
from tests.models.test_video import CLAMPED, frames_of, images


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow if name in SLOW_VIDEO else ())
                        for name in VIDEO_NETWORKS])  # fmt: skip
def model(request: pytest.FixtureRequest) -> VideoAutoencoder:
    skip_if_missing(request.param)
    torch.manual_seed(0)
    return VideoAutoencoder.example(request.param)


def test_parameters_that_one_frame_does_not_use_are_frozen(model: VideoAutoencoder) -> None:
    model.train()
    output = model(images(model))
    terms = output.posterior.regularization().values()
    (output.reconstructions.square().sum() + sum(term.sum() for term in terms)).backward()
    unused = {name for name, parameter in model.net.named_parameters() if parameter.grad is None}
    assert unused == set(model.frozen_names)


def test_reconstructions_beyond_the_range_have_a_gradient() -> None:
    """Wan's own `decode` clamps them, which stops the gradient."""
    model = VideoAutoencoder.example("AutoencoderKLWan")
    z = torch.randn(1, 4, 2, 3)
    with torch.no_grad():
        model.last_layer.mul_(1000)
    reconstructions = model.decode(z)
    beyond = reconstructions.detach().abs() > 1
    assert beyond.float().mean() > 0.5
    reconstructions[beyond].square().sum().backward()
    assert model.last_layer.grad is not None
    assert model.last_layer.grad.abs().max() > 0


class Sizes(TorchFunctionMode):
    """Records the temporal sizes of the kernels of convolutions over volumes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.conv3d:
            self.found.append(args[1].shape[2])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CLAMPED)
def test_convolutions_over_zero_frames_are_two_dimensional(name: str) -> None:
    """And have the gradients of the class's own convolutions, which are zero for the frames before."""
    skip_if_missing(name)
    model = VideoAutoencoder.example(name)
    other = copy.deepcopy(model)
    x = images(model)
    with Sizes() as sizes:
        latents = model.encode(x).mode()
        reconstructions = model.decode(latents)
    assert {*sizes.found} <= {1}
    reconstructions.square().sum().backward()
    own = other.net.encode(frames_of(other, x)).latent_dist.mode()
    decoded = other.net.decode(own).sample[:, :3]
    assert decoded.abs().max() < 1  # nothing is clamped
    decoded.square().sum().backward()
    for key, parameter in model.net.named_parameters():
        expected = other.net.get_parameter(key).grad
        assert (parameter.grad is None) == (expected is None), key
        if expected is not None:
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-5)
