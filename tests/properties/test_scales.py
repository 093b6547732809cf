"""Fold and unfold, scale and unscale, floats and uint8: each is the inverse of the other."""

from __future__ import annotations

import json
import math

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from ldm_ae.latents.fold import Constants, Fold
from ldm_ae.latents.store.provenance import read_scaling, scaling_of
from ldm_ae.latents.store.quantize_uint8 import dequantize_uint8, pack, quantize_uint8, unpack
from ldm_ae.models import ChannelStatistics, LatentSpec
from ldm_ae.models.scaling import factor_beside_vectors
from ldm_ae.models.stored_rows import ERROR, SCALE

POSITIVE = st.floats(1e-3, 1e3)
BIAS = st.floats(-100, 100)
SEED = st.integers(0, 2**31)
NOT_PACKED = st.just(1)


def values(seed: int, *shape: int, scale: float = 3.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale + 1


@st.composite
def folds(draw: st.DrawFn) -> Fold:
    channels = draw(st.integers(1, 5))
    scale = draw(st.lists(POSITIVE, min_size=channels, max_size=channels))
    bias = draw(st.lists(BIAS, min_size=channels, max_size=channels))
    return Fold(scale=tuple(scale), bias=tuple(bias))


@st.composite
def specs(draw: st.DrawFn, patch_sizes: st.SearchStrategy[int] = NOT_PACKED) -> LatentSpec:
    channels, patch_size = draw(st.integers(1, 5)), draw(patch_sizes)
    vectors, scaled = draw(st.booleans()), channels * patch_size**2
    numbers = st.lists(POSITIVE, min_size=scaled, max_size=scaled)
    biases = st.lists(BIAS, min_size=scaled, max_size=scaled)
    return LatentSpec(
        patch_size=patch_size,
        channels=channels, downsample_factor=8, scaling_factor=draw(POSITIVE), shift_factor=draw(BIAS),
        latents_mean=tuple(draw(biases)) if vectors else None, latents_std=tuple(draw(numbers)) if vectors else None,
    )  # fmt: skip


def assert_near(found: Tensor, expected: Tensor, bias: float) -> None:
    """float32 keeps 24 bits of a value, and of the bias that is subtracted from it and added again."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * (1 + abs(bias)))


@given(folds(), SEED, st.booleans())
def test_unfold_inverts_fold(fold: Fold, seed: int, batched: bool) -> None:
    latents = values(seed, *((2,) if batched else ()), len(fold.scale), 3, 4)
    assert_near(fold.unfold(fold.fold(latents)), latents, max(map(abs, fold.bias)))


@given(folds(), SEED)
def test_unfold_moments_inverts_fold_moments(fold: Fold, seed: int) -> None:
    moments = values(seed, 2, 2 * len(fold.scale), 3, 4)
    assert_near(fold.unfold_moments(fold.fold_moments(moments)), moments, max(map(abs, fold.bias)))


@given(folds(), SEED)
def test_folded_moments_are_the_moments_of_folded_latents(fold: Fold, seed: int) -> None:
    mean, log_variance = values(seed, 1, 2 * len(fold.scale), 2, 2).chunk(2, dim=1)
    found_mean, found_log_variance = fold.fold_moments(torch.cat([mean, log_variance], dim=1)).chunk(2, dim=1)
    torch.testing.assert_close(found_mean, fold.fold(mean))
    deviation = (log_variance.double() / 2).exp()
    expected = deviation / torch.tensor(fold.scale, dtype=torch.float64).view(-1, 1, 1)
    torch.testing.assert_close((found_log_variance.double() / 2).exp(), expected, rtol=1e-5, atol=0)


@given(folds())
def test_fold_roundtrips_through_json(fold: Fold) -> None:
    assert Fold.from_json(fold.to_json()) == fold


@given(specs(st.integers(1, 3)), SEED)
def test_unscale_inverts_scale(spec: LatentSpec, seed: int) -> None:
    size = spec.patch_size
    latents = values(seed, 2, spec.channels, 2 * size, 3 * size)
    bias = max(map(abs, (spec.shift_factor, *(spec.latents_mean or ()))))
    scaled = spec.scale(latents)
    assert scaled.shape == (2, spec.scaled_channels, 2, 3)
    assert_near(spec.unscale(scaled), latents, bias)


@given(st.integers(1, 3), st.integers(1, 4), SEED)
def test_pack_gives_each_place_of_a_patch_a_channel(patch_size: int, channels: int, seed: int) -> None:
    spec = LatentSpec(channels=channels, downsample_factor=8, scaling_factor=1.0, patch_size=patch_size)
    latents = values(seed, 2, channels, 2 * patch_size, 3 * patch_size)
    packed = spec.pack(latents)
    for c in range(channels):
        for i in range(patch_size):
            for j in range(patch_size):
                channel = (c * patch_size + i) * patch_size + j
                assert torch.equal(packed[:, channel], latents[:, c, i::patch_size, j::patch_size])
    assert torch.equal(spec.unpack(packed), latents)


@given(specs(st.integers(1, 3)))
def test_specification_roundtrips_through_a_stores_header(spec: LatentSpec) -> None:
    assume(factor_beside_vectors(spec.scaling_factor, spec.latents_mean, spec.latents_std) == spec.scaling_factor)
    assert read_scaling(json.loads(json.dumps(scaling_of(spec)))) == spec


@given(specs(), SEED)
def test_fold_of_a_model_yields_its_scaled_latents(spec: LatentSpec, seed: int) -> None:
    latents = values(seed, 2, spec.channels, 3, 4)
    fold = Fold.of_model(spec)
    torch.testing.assert_close(
        fold.fold(latents), spec.scale(latents.double()).float(), rtol=1e-5, atol=1e-6 * spec.scaling_factor
    )


@given(POSITIVE, st.lists(st.tuples(BIAS, POSITIVE), min_size=1, max_size=4), BIAS, SEED)
def test_folded_latents_have_unit_variance_for_the_trainer(
    factor: float, channels: list[tuple[float, float]], shift: float, seed: int
) -> None:
    """The trainer computes (values - shift) * factor of the folded latents."""
    noise = torch.randn(2, len(channels), 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mean, std = (torch.tensor(column, dtype=torch.float64).view(-1, 1, 1) for column in zip(*channels, strict=True))
    latents = noise * std + mean
    statistics = ChannelStatistics(len(channels))
    statistics.update(latents)
    assume(not statistics.constant_channels)
    fold = Fold.for_trainer(statistics, Constants(factor=(factor,), shift=(shift,)))
    scale, bias = (torch.tensor(numbers, dtype=torch.float64).view(-1, 1, 1) for numbers in (fold.scale, fold.bias))
    seen = ((latents - bias) / scale - shift) * factor
    # The difference of numbers as large as shift * factor loses as many digits.
    torch.testing.assert_close(seen.mean(dim=(0, 2, 3)), torch.zeros(len(channels)).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        seen.std(dim=(0, 2, 3), correction=0), torch.ones(len(channels)).double(), rtol=1e-3, atol=0
    )


@given(SEED, st.floats(0, 1e6), st.integers(1, 3), st.integers(1, 3))
def test_uint8_error_is_at_most_half_a_step(seed: int, scale: float, images: int, channels: int) -> None:
    latents = values(seed, images, channels, 4, 5, scale=scale)
    packed, scales = quantize_uint8(latents)
    assert packed.dtype == torch.uint8
    assert packed.shape == latents.shape
    assert scales.shape == (images, channels, 2)
    error = (dequantize_uint8(packed, scales) - latents).abs()
    # Besides half a step, the rounding of float32 arithmetic with numbers of this size.
    allowed = scales[..., 0, None, None] / 2 + 4 * torch.finfo(torch.float32).eps * latents.abs().max()
    assert bool((error <= allowed).all())


@given(SEED, st.floats(-1e6, 1e6, width=32))
def test_uint8_preserves_extremes_and_constants(seed: int, constant: float) -> None:
    latents = torch.stack([values(seed, 2, 4, 4), torch.full((2, 4, 4), constant)])
    restored = dequantize_uint8(*quantize_uint8(latents))
    assert torch.equal(restored[1], latents[1])
    assert torch.equal(restored[0].amin(dim=(1, 2)), latents[0].amin(dim=(1, 2)))
    torch.testing.assert_close(restored[0].amax(dim=(1, 2)), latents[0].amax(dim=(1, 2)))


@given(SEED, st.integers(1, 4))
def test_uint8_packing_of_an_image_does_not_depend_on_others(seed: int, images: int) -> None:
    latents, moments = values(seed, images, 2, 3, 3), values(seed + 1, images, 4, 3, 3)
    indices = torch.arange(images * 9).reshape(images, 3, 3)
    tensors = {"latents": latents, "moments": moments, "indices": indices}
    together = pack(tensors, lambda found: found["latents"])
    for i in range(images):
        alone = pack({name: tensor[i : i + 1] for name, tensor in tensors.items()}, lambda found: found["latents"])
        assert alone.keys() == together.keys() == {*tensors, f"latents{SCALE}", f"moments{SCALE}", ERROR}
        assert all(torch.equal(alone[name], together[name][i : i + 1]) for name in alone)
    restored = unpack(together)
    assert torch.equal(restored["indices"], indices)
    found = (restored["latents"] - latents).square().mean(dim=(2, 3))
    torch.testing.assert_close(together[ERROR], found)
    assert math.isfinite(float(found.max()))
