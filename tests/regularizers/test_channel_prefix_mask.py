"""The channel-prefix mask."""

from __future__ import annotations

import pytest
import torch

from ldm_ae.core.draws import REGULARIZER, Draws
from ldm_ae.core.errors import UserError
from ldm_ae.models import DeterministicPosterior, KLAutoencoder
from ldm_ae.regularizers.channel_prefix_mask import ChannelPrefixMask


def kept(regularizer: ChannelPrefixMask, channels: int, seeds: range) -> list[int]:
    """The number of channels that each sample keeps; checks that these are the first ones, unchanged."""
    latents = torch.randn(len(seeds), channels, 2, 3, generator=torch.Generator().manual_seed(0))
    images = torch.zeros(len(seeds), 3, 4, 6)
    found = regularizer(DeterministicPosterior(latents), latents, images, Draws(seeds, REGULARIZER))
    assert found.target is images
    counts = [int(row.abs().amax(dim=(1, 2)).count_nonzero()) for row in found.latents]
    for row, given, count in zip(found.latents, latents, counts, strict=True):
        assert torch.equal(row[:count], given[:count])
        assert not row[count:].any()
    return counts


def test_mask_keeps_a_listed_number_of_first_channels() -> None:
    counts = kept(ChannelPrefixMask(channels=(2, 5)), 6, range(200))
    assert set(counts) == {2, 5}
    assert counts.count(2) == pytest.approx(100, abs=22)  # three standard deviations
    assert kept(ChannelPrefixMask(channels=(2, 5)), 6, range(50, 60)) == counts[50:60]


def test_default_list_is_every_eighth_of_the_channels() -> None:
    assert set(kept(ChannelPrefixMask(), 16, range(300))) == {2, 4, 6, 8, 10, 12, 14, 16}
    assert set(kept(ChannelPrefixMask(), 3, range(100))) == {1, 2, 3}


def test_masked_channels_get_no_gradient() -> None:
    latents = torch.randn(1, 6, 2, 2, requires_grad=True)
    regularizer = ChannelPrefixMask(channels=(2,))
    found = regularizer(DeterministicPosterior(latents), latents, torch.zeros(1, 3, 4, 4), Draws([1], REGULARIZER))
    (gradient,) = torch.autograd.grad(found.latents.sum(), latents)
    assert torch.equal(gradient, (torch.arange(6) < 2).float().view(1, 6, 1, 1).expand(1, 6, 2, 2))


def test_lists_that_do_not_fit_the_model_are_refused() -> None:
    for channels in ((), (0, 2)):
        with pytest.raises(UserError, match="expected channels of at least 1, got"):
            ChannelPrefixMask(channels=channels)
    with pytest.raises(UserError, match=r"expected channels of at most 4, got \[2, 8\]"):
        ChannelPrefixMask(channels=(2, 8)).prepare(KLAutoencoder.example("AutoencoderKL"))
