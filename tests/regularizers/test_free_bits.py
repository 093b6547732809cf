"""Free bits and their soft clip."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ldm_ae.core.draws import REGULARIZER, Draws
from ldm_ae.core.errors import UserError
from ldm_ae.models import GaussianPosterior, VQAutoencoder
from ldm_ae.quantizers import FSQ
from ldm_ae.regularizers.free_bits import FreeBits


def posterior(means: list[list[float]]) -> tuple[GaussianPosterior, Tensor]:
    """One image of 1 x n latents for each channel's means, with variance 1: the KL of an element is mean² / 2."""
    mean = torch.tensor(means).view(1, len(means), 1, -1).requires_grad_()
    return GaussianPosterior(torch.cat([mean, torch.zeros_like(mean)], dim=1)), mean


def term(regularizer: FreeBits, given: GaussianPosterior) -> Tensor:
    latents, images = given.mode(), torch.zeros(1, 3, 2, 4)
    found = regularizer(given, latents, images, Draws([1], REGULARIZER))
    assert found.latents is latents
    assert found.target is images
    assert set(found.terms) == {"free_bits_kl"}
    return found.terms["free_bits_kl"]


def test_elements_and_channels_are_clipped_by_hand() -> None:
    """KLs are 0.5, 0 and 2, 4.5; with 1 free nat the elements count 1, 1, 2, 4.5, the channels (means 0.25, 3.25) 1."""
    given, mean = posterior([[1.0, 0.0], [2.0, 3.0]])
    by_element = term(FreeBits(free_nats=1.0, per="element"), given)
    assert by_element.tolist() == pytest.approx([1 + 1 + 2 + 4.5])
    (gradient,) = torch.autograd.grad(by_element.sum(), mean, retain_graph=True)
    assert gradient.flatten().tolist() == [0.0, 0.0, 2.0, 3.0]  # that of the KL, above the threshold
    by_channel = term(FreeBits(free_nats=1.0, per="channel"), given)
    assert by_channel.tolist() == pytest.approx([2 * 1 + 2 * 3.25])
    assert term(FreeBits(free_nats=1e-6), given).tolist() == pytest.approx(given.regularization()["kl"].tolist())


def test_soft_clip_rises_smoothly_to_the_kl() -> None:
    given, mean = posterior([[2.0], [0.0], [8.0]])  # KLs of 2, 0 and 32 nats
    found = term(FreeBits(free_nats=2.0, softness=0.5), given)
    below = 0.5 * math.log1p(math.exp((0 - 2) / 0.5))
    assert found.tolist() == pytest.approx([(2 + 0.5 * math.log(2)) + (2 + below) + 32], rel=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), mean)
    assert gradient.flatten().tolist() == pytest.approx([2.0 / 2, 0.0, 8.0])  # half of the KL's at the threshold
    hard, soft = (term(FreeBits(free_nats=2.0, softness=s), given) for s in (0.0, 1e-3))
    assert torch.allclose(hard, soft, atol=1e-3)


def test_invalid_arguments_and_other_posteriors_are_refused() -> None:
    with pytest.raises(UserError, match="expected free_nats above 0, got 0"):
        FreeBits(free_nats=0.0)
    with pytest.raises(UserError, match="expected softness of at least 0, got -1"):
        FreeBits(softness=-1.0)
    codes = VQAutoencoder(
        quantizer=FSQ((3, 3)), latent_channels=2, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2,
        mid_block_add_attention=False,
    )  # fmt: skip
    with pytest.raises(UserError, match="KL of a Gaussian posterior, and QuantizedAutoencoder has none"):
        FreeBits().prepare(codes)
