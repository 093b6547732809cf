"""EQ-VAE: what is transformed, how often, and alike for the whole step."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from ldm_ae.core.draws import REGULARIZER, Draws
from ldm_ae.core.errors import UserError
from ldm_ae.models import DeterministicPosterior, KLAutoencoder
from ldm_ae.regularizers import Chain
from ldm_ae.regularizers.eq_vae import EQVAE

UNUSED = DeterministicPosterior(torch.zeros(1, 4, 1, 1))


def prepared(**arguments: float) -> EQVAE:
    """For a downsample factor of 2."""
    regularizer = EQVAE(**arguments)
    regularizer.prepare(KLAutoencoder.example("AutoencoderKL"))
    return regularizer


def test_latents_and_target_are_scaled_and_turned_alike_by_hand() -> None:
    """Every scale from 16/32 makes one latent of 2x2: their mean. Images of 4x4 become means of blocks, turned."""
    regularizer = prepared(probability=1.0, smallest_scale=0.5)
    latents = torch.tensor([[1.0, 2.0], [3.0, 6.0]]).view(1, 1, 2, 2)
    blocks = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    images = blocks.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    seen = set()
    for step in range(40):
        found = regularizer(UNUSED, latents, images, Draws([5], REGULARIZER, step))
        assert found.latents.tolist() == [[[[3.0]]]]
        turns = [k for k in (1, 2, 3) if torch.equal(found.target, torch.rot90(blocks, k, (-2, -1)))]
        assert len(turns) == 1
        seen |= set(turns)
    assert seen == {1, 2, 3}


def marked(side: int) -> Tensor:
    """Zeros with one bright corner, the upper left."""
    values = torch.zeros(1, 1, side, side)
    values[..., : side // 4, : side // 4] = 1.0
    return values


def corner(values: Tensor) -> int:
    """Quarter turns, counterclockwise, that bring the bright corner back from the upper left to where it is."""
    return max(range(4), key=lambda k: float(torch.rot90(values, -k, (-2, -1))[0, 0, 0, 0]))


def test_steps_have_the_published_frequencies_and_scales() -> None:
    regularizer, count = prepared(), 1200
    kinds: Counter[str] = Counter()
    scales: Counter[tuple[str, int]] = Counter()
    turns: Counter[int] = Counter()
    for step in range(count):
        draws = Draws([7, 8], REGULARIZER, step)
        images = regularizer.encoded_images(marked(64), draws)
        latents = marked(images.shape[-1] // 2)  # 32, at which every scale is exact
        found = regularizer(UNUSED, latents, images, draws)
        assert found.target.shape[-1] == 2 * found.latents.shape[-1]
        turned = corner(found.latents)
        assert turned == corner(found.target)
        small = images.shape[-1] < 64
        kind = "small" if small else "latents" if turned else "plain"
        assert (kind == "plain") == (found.latents is latents and images.shape[-1] == 64)
        kinds[kind] += 1
        scales[kind, found.latents.shape[-1]] += 1
        turns[turned] += 1
    # Three standard deviations of a fraction of 1200 are at most 3 sqrt(0.25 / 1200) = 0.043.
    assert kinds["latents"] / count == pytest.approx(0.5, abs=0.043)
    assert kinds["small"] / count == pytest.approx(0.125, abs=0.03)
    assert {side for kind, side in scales if kind == "latents"} == set(range(8, 32))
    assert {side for kind, side in scales if kind == "small"} <= set(range(8, 32))
    assert all(turns[k] / kinds["latents"] == pytest.approx(1 / 3, abs=0.06) for k in (1, 2, 3))


def test_samples_of_a_step_share_the_transformation() -> None:
    regularizer = prepared(probability=1.0)
    latents, images = torch.randn(4, 4, 16, 16), torch.rand(4, 3, 32, 32)
    whole = regularizer(UNUSED, latents, images, Draws(range(4), REGULARIZER, 11))
    for part in (slice(0, 1), slice(1, 4)):
        seeds = range(100, 104)[part]  # the samples' own seeds make no difference
        found = regularizer(UNUSED, latents[part], images[part], Draws(seeds, REGULARIZER, 11))
        assert torch.equal(found.latents, whole.latents[part])
        assert torch.equal(found.target, whole.target[part])


def test_images_that_are_not_square_are_turned() -> None:
    regularizer = prepared(probability=1.0)
    shapes = {
        regularizer(UNUSED, torch.zeros(1, 4, 8, 16), torch.zeros(1, 3, 16, 32), Draws([1], REGULARIZER, step))
        .target.shape[-2:]
        for step in range(60)
    }  # fmt: skip
    expected = set(regularizer.image_sizes((16, 32), judged=True)) - {(16, 32)}
    assert shapes <= expected
    assert {(h < w) for h, w in shapes} == {True, False}


def test_possible_image_sizes_are_known_before_the_training() -> None:
    halves = [(16, 16), *((side, side) for side in (8, 10, 12, 14))]
    assert list(prepared(smallest_scale=0.5).image_sizes((16, 16), judged=True)) == halves
    neither = prepared(probability=0.0, small_image_probability=0.0)
    assert neither.image_sizes((16, 16), judged=False) == [(16, 16)]
    small = prepared(probability=0.0, smallest_scale=0.9375)  # 30/32 and 31/32 of 8 x 16 latents are 7 x 15
    assert small.image_sizes((16, 32), judged=False) == [(16, 32), (14, 30)]
    assert Chain(regularizers=(small, neither)).image_sizes((16, 32), judged=True) == [(16, 32), (14, 30)]


@pytest.mark.parametrize(("name", "value", "words"), [
    ("probability", 1.5, r"expected probability in \[0, 1\], got 1.5"),
    ("small_image_probability", -0.1, r"expected small_image_probability in \[0, 1\], got -0.1"),
    ("smallest_scale", 1.0, "expected smallest_scale from 1/32 to 31/32, got 1.0"),
])  # fmt: skip
def test_invalid_arguments_are_refused(name: str, value: float, words: str) -> None:
    with pytest.raises(UserError, match=words):
        EQVAE(**{name: value})
