"""Scale equivariance: the second decode, its target and its factor."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from ldm_ae.core.draws import REGULARIZER, Draws
from ldm_ae.core.errors import UserError
from ldm_ae.models import DeterministicPosterior, KLAutoencoder
from ldm_ae.regularizers.scale_equivariance import ScaleEquivariance
from ldm_ae.training.training_pass import TrainingPass

UNUSED = DeterministicPosterior(torch.zeros(1, 4, 1, 1))


def test_downsampled_latents_and_images_by_hand() -> None:
    """Bilinear halving is the mean of 2x2 values."""
    regularizer = ScaleEquivariance(alpha=0.5, factors=(2,))
    latents = torch.arange(16.0).view(1, 1, 4, 4)
    images = torch.arange(64.0).view(1, 1, 8, 8)
    found = regularizer(UNUSED, latents, images, Draws([1], REGULARIZER))
    assert found.latents is latents
    assert found.target is images
    (further,) = found.further
    assert further.name == "scale_equivariance"
    assert further.weight == 0.5
    assert further.latents.tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]
    assert torch.equal(further.target, torch.nn.functional.avg_pool2d(images, 2))


def test_each_step_draws_one_of_the_factors() -> None:
    regularizer = ScaleEquivariance()
    latents, images = torch.zeros(2, 4, 8, 8), torch.zeros(2, 3, 16, 16)
    sides: Counter[int] = Counter()
    for step in range(200):
        (further,) = regularizer(UNUSED, latents, images, Draws([1, 2], REGULARIZER, step)).further
        assert further.target.shape[-1] == 2 * further.latents.shape[-1]
        sides[further.latents.shape[-1]] += 1
    assert set(sides) == {4, 2}
    assert sides[4] == pytest.approx(100, abs=22)  # three standard deviations


def test_training_pass_decodes_them_too() -> None:
    torch.manual_seed(0)
    model = KLAutoencoder.example("AutoencoderKL")
    regularizer = ScaleEquivariance(factors=(2,))
    regularizer.prepare(model)
    images, noise = torch.rand(2, 3, 16, 16) * 2 - 1, torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        output = TrainingPass(model, regularizer)(images, noise, Draws([1, 2], REGULARIZER))
        latents = model.encode(images).sample(noise=noise)
        small = torch.nn.functional.avg_pool2d(latents, 2)
        (further,) = output.further
        assert torch.allclose(further.reconstructions, model.decode(small), atol=1e-6)
    assert torch.allclose(further.target, torch.nn.functional.avg_pool2d(images, 2), atol=1e-6)
    assert regularizer.image_sizes((16, 16), judged=True) == [(16, 16)]
    assert regularizer.image_sizes((16, 16), judged=False) == [(16, 16), (8, 8)]


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(UserError, match="expected alpha above 0, got 0"):
        ScaleEquivariance(alpha=0.0)
    for factors in ((), (1, 2)):
        with pytest.raises(UserError, match="expected factors of at least 2, got"):
            ScaleEquivariance(factors=factors)
