"""Maps between indices and codes, for codebooks of any size up to 2^62."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from ldm_ae.quantizers import BSQ, FSQ, LFQ

SEED = st.integers(0, 2**31)
LEVELS = st.lists(st.integers(3, 17), min_size=1, max_size=8)


def some_indices(size: int, seed: int) -> torch.Tensor:
    """(1, 4, 4) indices with the first and the last one among them."""
    found = torch.randint(size, (1, 4, 4), generator=torch.Generator().manual_seed(seed))
    found[0, 0, 0], found[0, 3, 3] = 0, size - 1
    return found


@given(LEVELS, SEED)
def test_fsq_indices_are_mixed_radix_digits(levels: list[int], seed: int) -> None:
    indices = some_indices(math.prod(levels), seed)
    codes = FSQ(levels).codes(indices)
    assert codes.shape == (1, len(levels), 4, 4)
    assert codes.abs().max() <= 1
    # Written out again as digits of the mixed base, the codes give the indices.
    place, found = 1, torch.zeros_like(indices)
    for channel, count in enumerate(levels):
        digits = (codes[:, channel] * (count // 2)).round().long() + count // 2
        assert 0 <= int(digits.min()) <= int(digits.max()) < count
        found += digits * place
        place *= count
    assert torch.equal(found, indices)


@given(LEVELS, SEED, st.floats(0.01, 100))
def test_fsq_quantized_latents_equal_the_codes_of_their_indices(levels: list[int], seed: int, scale: float) -> None:
    quantizer = FSQ(levels)
    latents = torch.randn(2, len(levels), 3, 5, generator=torch.Generator().manual_seed(seed)) * scale
    quantized = quantizer.quantize(latents)
    assert 0 <= int(quantized.indices.min()) <= int(quantized.indices.max()) < math.prod(levels)
    assert torch.equal(quantizer.codes(quantized.indices), quantized.quantized)


SIGNS = st.sampled_from([LFQ, BSQ])


@given(SIGNS, st.integers(1, 62), SEED)
def test_sign_codes_roundtrip(kind: type[LFQ], bits: int, seed: int) -> None:
    quantizer = kind(bits)
    indices = some_indices(2**bits, seed)
    codes = quantizer.codes(indices)
    again = quantizer.quantize(codes)
    assert torch.equal(again.indices, indices)
    assert torch.equal(again.quantized, codes)


@given(SIGNS, st.integers(1, 62), SEED)
def test_bit_d_of_an_index_is_the_sign_of_channel_d(kind: type[LFQ], bits: int, seed: int) -> None:
    latents = torch.randn(2, bits, 3, 5, generator=torch.Generator().manual_seed(seed))
    indices = kind(bits).quantize(latents).indices
    for channel in range(bits):
        assert torch.equal((indices >> channel) & 1, (latents[:, channel] > 0).long())
