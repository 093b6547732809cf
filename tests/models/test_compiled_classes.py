"""The parts that a network class declares for torch.compile can be compiled."""

from __future__ import annotations

import copy

import pytest
import torch

from ldm_ae.models.adapters import AUTOENCODERS
from ldm_ae.models.trainable import set_trainable
from tests.models.examples import images, noise_of, skip_if_missing

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("for_training", [False, True])
@pytest.mark.parametrize("name", AUTOENCODERS)
def test_compiled_parts_have_equal_outputs_and_gradients(name: str, for_training: bool) -> None:
    """The graphs are captured whole, and differentiated for training; generating kernels of them would take minutes."""
    skip_if_missing(name)
    model = AUTOENCODERS[name].example(name).eval()
    compiled = copy.deepcopy(model)
    parts = compiled.compilable_parts(for_training=for_training)
    if not parts:
        pytest.skip("the class declares no parts to compile")
    for part in parts:
        part.compile(backend="aot_eager")
    for each in (model, compiled):
        set_trainable(each, ["*"])
    x, noise = images(model), noise_of(model)
    with torch.set_grad_enabled(for_training):
        expected, found = (each.train(for_training)(x, noise).reconstructions for each in (model, compiled))
    torch.testing.assert_close(found, expected)
    if for_training:
        for output in (expected, found):
            output.square().sum().backward()
        for key, parameter in model.net.named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(compiled.net.get_parameter(key).grad, parameter.grad, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
