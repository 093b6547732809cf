"""The class-conditional diffusion model of latents samples the distribution of each class."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.models import VectorAutoencoder
from ldm_ae.training.diffusion import ClassDiffusion
from tests.evaluation.stubs import IdentityAutoencoder

LABELS = torch.arange(400) % 2


def corners(labels: Tensor, seed: int) -> Tensor:
    """Images (B, 3, 1, 1) near two opposite corners of the square of the first two channels: the class decides which
    diagonal, and chance decides which end. The third channel is constant."""
    generator = torch.Generator().manual_seed(seed)
    end = torch.randint(2, (len(labels),), generator=generator) * 2.0 - 1
    points = torch.stack([end, end * (1 - 2 * labels), torch.zeros(len(labels))], dim=1) * 0.5
    noise = 0.05 * torch.randn(len(labels), 2, generator=generator)
    return (points + torch.cat([noise, torch.zeros(len(labels), 1)], dim=1))[:, :, None, None]


@pytest.mark.slow
def test_samples_have_the_modes_of_their_class_and_no_others() -> None:
    generate = ClassDiffusion(
        IdentityAutoencoder(), corners(LABELS, 0), LABELS, steps=300, width=64, depth=2, sampling_steps=20
    )
    for label, sign in ((0, 1), (1, -1)):
        x, y, constant = generate(torch.full((200,), label)).flatten(1).T
        # A Gaussian of the class lies on the same diagonal, but half of its draws are between the two ends.
        near = (x.abs() - 0.5).abs().lt(0.25) & (y.abs() - 0.5).abs().lt(0.25)
        assert near.float().mean() > 0.9
        assert (x * y * sign > 0).float().mean() > 0.95
        assert (x > 0).float().mean() == pytest.approx(0.5, abs=0.2)  # 200 draws: 0.035 a deviation, and learned
        assert constant.abs().max() < 1e-4


def test_vector_latents_are_seeded_and_drawn_anew() -> None:
    torch.manual_seed(0)
    model = VectorAutoencoder(architecture="mlp", image_size=8, latent_channels=3, hidden=(8,)).eval()
    images, labels = torch.rand(6, 3, 8, 8) * 2 - 1, torch.tensor([0, 1, 2, 0, 1, 2])
    state = torch.get_rng_state()

    def build() -> ClassDiffusion:
        return ClassDiffusion(model, images, labels, steps=2, width=32, depth=1, batch_size=4, sampling_steps=2)

    generate, again = build(), build()
    first, second = generate(labels), generate(labels)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == (6, 3, 8, 8)
    assert torch.equal(first, again(labels))
    assert not torch.equal(first, second)
    assert first.abs().max() <= 1


def test_wrong_numbers_and_missing_labels_are_refused() -> None:
    images = corners(LABELS, 0)
    with pytest.raises(UserError, match="width a multiple of 32, got 3000, 4, 128, 50 and 48"):
        ClassDiffusion(IdentityAutoencoder(), images, LABELS, width=48)
    with pytest.raises(UserError, match="needs the label of each image"):
        ClassDiffusion(IdentityAutoencoder(), images, LABELS - 1)
    with pytest.raises(UserError, match="square latents, got 1x2"):
        ClassDiffusion(IdentityAutoencoder(), images.expand(-1, -1, -1, 2), LABELS)
