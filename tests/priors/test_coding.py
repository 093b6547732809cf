"""The range coder: roundtrip, bit rate, and changed words."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ldm_ae.core.errors import UserError
from ldm_ae.priors import GatedPixelCNN, decode_indices, encode_indices
from tests.priors.common import VARIANTS, small, some_indices, spread


@pytest.mark.parametrize("name", VARIANTS)
def test_coded_indices_roundtrip_at_the_priors_bit_rate(name: str) -> None:
    prior = small(name)
    for image, label in zip(some_indices(prior), (0, 2, -1), strict=True):
        words = encode_indices(prior, image, label)
        assert words.dtype == np.uint32
        assert torch.equal(decode_indices(prior, words, label), image)
        bits = float(prior.bits(image[None], torch.tensor([label])))
        assert bits <= 32 * len(words) <= 1.01 * bits + 64  # the coder ends with at most two words more


def test_long_streams_have_the_priors_bit_rate() -> None:
    """The rate holds for a peaked and for a flat distribution, over many codes."""
    flat = GatedPixelCNN(codebook_size=4096, shape=(12, 12), width=8, depth=1).eval()
    for prior, indices in ((flat, some_indices(flat, 1)[0]), (sharp := spread(flat), sharp.sample(1)[0])):
        words = encode_indices(prior, indices)
        assert 32 * len(words) == pytest.approx(float(prior.bits(indices[None])), rel=0.01, abs=64)


@pytest.mark.parametrize("name", VARIANTS)
def test_changed_word_decodes_to_other_indices_or_an_error(name: str) -> None:
    prior = small(name)
    image = some_indices(prior, 1)[0]
    words = encode_indices(prior, image, 1)
    changed = words.copy()
    changed[0] ^= 1 << 20
    try:
        assert not torch.equal(decode_indices(prior, changed, 1), image)
    except UserError as error:
        assert "damaged" in str(error)  # noqa: PT017 - either is right
    assert not torch.equal(decode_indices(prior, words, 2), image)  # nor with the class of another image


def test_invalid_code_words_are_refused() -> None:
    prior = small("CausalTransformer")
    words = np.full(3, 2**32 - 1, dtype=np.uint32)
    with pytest.raises(UserError, match="damaged"):
        decode_indices(prior, words)
