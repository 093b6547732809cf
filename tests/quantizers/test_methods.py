"""Each method against a reference of a few lines, written as its paper has it."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import VectorQuantizer
from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.quantizers import (
    BSQ,
    EMAVQ,
    FSQ,
    IBQ,
    LFQ,
    VQ,
    CodebookCare,
    CosineVQ,
    GumbelVQ,
    Quantized,
    Quantizer,
    ResidualVQ,
    SimVQ,
)
from ldm_ae.quantizers.gumbel import gumbel_noise
from tests.quantizers.common import some_latents


def rows_of(latents: Tensor) -> Tensor:
    return latents.movedim(1, -1).reshape(-1, latents.shape[1])


def spread_out(quantizer: Quantizer) -> Quantizer:
    """Codes as far apart as latents are; methods start them all near zero."""
    with torch.no_grad():
        for name, value in quantizer.state_dict().items():
            if name.endswith("embedding.weight"):
                value.normal_()
    return quantizer


def run(quantizer: Quantizer) -> tuple[Tensor, Quantized]:
    latents = some_latents(quantizer).requires_grad_()
    return latents, quantizer.quantize(latents, noise=some_latents(quantizer, seed=8))


@pytest.mark.parametrize("legacy", [False, True])
def test_vq_is_diffusers_with_beta_on_the_right_side(legacy: bool) -> None:
    ours = spread_out(VQ(8, 4, beta=0.25, legacy=legacy))
    theirs = VectorQuantizer(8, 4, beta=0.25, legacy=legacy)
    theirs.load_state_dict(ours.state_dict())
    latents, found = run(ours)
    twin = latents.detach().clone().requires_grad_()
    quantized, loss, (_, _, indices) = theirs(twin)
    assert torch.equal(found.indices.flatten(), indices)
    assert torch.allclose(found.quantized, quantized, atol=1e-6)  # they add and subtract the latents
    # Theirs is a mean over all elements: what the `mean` reduction makes of ours.
    total = (found.losses["codebook"] + found.losses["commitment"]).mean() / latents[0].numel()
    assert torch.allclose(total, loss, rtol=1e-6)
    weights = some_latents(ours, seed=9)
    for value, quantizer, z in ((total, ours, found.quantized), (loss, theirs, quantized)):
        (value + (z * weights).sum()).backward()
        assert quantizer.embedding.weight.grad is not None
    assert torch.allclose(latents.grad, twin.grad, rtol=1e-5)
    assert torch.allclose(ours.embedding.weight.grad, theirs.embedding.weight.grad, rtol=1e-5, atol=1e-7)


def test_vq_orthogonality_and_entropy_equal_their_formulas() -> None:
    quantizer = spread_out(VQ(8, 4, orthogonal=True, entropy_temperature=0.7))
    latents, found = run(quantizer)
    table = quantizer.embedding.weight
    cosines = F.normalize(table, dim=1) @ F.normalize(table, dim=1).T
    expected = (cosines - torch.eye(8)).square().sum() / 64
    assert torch.allclose(found.losses["orthogonality"], (expected * 24).expand(4), rtol=1e-5)
    p = (-torch.cdist(rows_of(latents), table).square() / 0.7).softmax(dim=1)
    mean = p.mean(dim=0)
    entropy = -(p * p.log()).sum(dim=1).view(4, 6).sum(dim=1) + 6 * (mean * mean.log()).sum()
    assert torch.allclose(found.losses["entropy"], entropy, rtol=1e-4)  # squared distances from float32 differences


def test_cosine_vq_selects_codes_by_cosine_similarity() -> None:
    quantizer = spread_out(CosineVQ(8, 4, beta=0.3))
    latents, found = run(quantizer)
    z, e = F.normalize(rows_of(latents), dim=1), F.normalize(quantizer.embedding.weight, dim=1)
    indices = (z @ e.T).argmax(dim=1)
    assert torch.equal(found.indices.flatten(), indices)
    chosen = e[indices]
    assert torch.allclose(rows_of(found.quantized), chosen)
    assert torch.allclose(found.losses["codebook"].sum(), (z - chosen).square().sum())
    assert torch.allclose(found.losses["commitment"].sum(), 0.3 * (z - chosen).square().sum())
    weights = torch.randn_like(latents)
    (gradient,) = torch.autograd.grad((found.quantized * weights).sum(), latents)
    (expected,) = torch.autograd.grad((F.normalize(latents, dim=1) * weights).sum(), latents)
    assert torch.allclose(gradient, expected, atol=1e-6)


def test_ema_vq_follows_its_update_formula() -> None:
    quantizer = spread_out(EMAVQ(8, 4, beta=0.5, decay=0.9, epsilon=1e-3))
    n, m = torch.ones(8), quantizer.ema_sums.clone()
    assert torch.equal(m, quantizer.ema_sums)
    for seed in range(3):
        latents = some_latents(quantizer, seed=seed)
        rows, codes = rows_of(latents), quantizer.embedding.weight.clone()
        one_hot = F.one_hot(torch.cdist(rows, codes).argmin(dim=1), 8).float()
        found = quantizer.quantize(latents)
        assert torch.allclose(found.losses["commitment"].sum(), 0.5 * (rows - one_hot @ codes).square().sum())
        assert list(found.losses) == ["commitment"]
        quantizer.learn([found])
        n = 0.9 * n + 0.1 * one_hot.sum(dim=0)
        m = 0.9 * m + 0.1 * one_hot.T @ rows
        smoothed = (n + 1e-3) / (n.sum() + 8 * 1e-3) * n.sum()
        assert torch.allclose(quantizer.embedding.weight, m / smoothed[:, None], rtol=1e-4, atol=1e-6)


def test_simvq_equals_its_formula() -> None:
    quantizer = SimVQ(8, 4, beta=0.3)
    latents, found = run(quantizer)
    table = quantizer.embedding.weight @ quantizer.projection.weight.T + quantizer.projection.bias
    z = rows_of(latents)
    chosen = table[torch.cdist(z, table).argmin(dim=1)]
    assert torch.allclose(rows_of(found.quantized), chosen, atol=1e-6)
    error = (z - chosen).square().sum()
    assert torch.allclose(found.losses["codebook"].sum(), error)
    assert torch.allclose(found.losses["commitment"].sum(), 0.3 * error)
    assert [name for name, _ in quantizer.named_parameters()] == ["projection.weight", "projection.bias"]


def test_ibq_equals_its_formula() -> None:
    quantizer = spread_out(IBQ(8, 4, beta=0.3, entropy_temperature=0.5))
    latents, found = run(quantizer)
    z, table = rows_of(latents), quantizer.embedding.weight
    soft = (z @ table.T).softmax(dim=1)
    hard = F.one_hot(soft.argmax(dim=1), 8).float()
    quantized = (hard + soft - soft.detach()) @ table
    assert torch.allclose(rows_of(found.quantized), quantized, atol=1e-6)
    losses = {
        "quantization": (quantized - z).square().sum(),
        "codebook": 0.3 * (hard @ table - z.detach()).square().sum(),
        "commitment": ((hard @ table).detach() - z).square().sum(),
    }
    weights = torch.randn_like(z)
    expected = sum(losses.values()) + (quantized * weights).sum()
    total = sum(found.losses[name].sum() for name in losses) + (rows_of(found.quantized) * weights).sum()
    for name, value in losses.items():
        assert torch.allclose(found.losses[name].sum(), value, rtol=1e-5)
    inputs = (latents, table)
    for mine, theirs in zip(
        torch.autograd.grad(total, inputs), torch.autograd.grad(expected, inputs, retain_graph=True), strict=True
    ):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-5)
    p = (z @ table.T / 0.5).softmax(dim=1)
    mean = p.mean(dim=0)
    entropy = -(p * p.log()).sum(dim=1).view(4, 6).sum(dim=1) + 6 * (mean * mean.log()).sum()
    assert torch.allclose(found.losses["entropy"], entropy, rtol=1e-5)


def test_fsq_is_the_papers_listing() -> None:
    levels = torch.tensor([8.0, 5.0, 4.0, 3.0])
    quantizer = FSQ((8, 5, 4, 3))
    assert (quantizer.codebook_size, quantizer.codebook_dim) == (480, 4)
    latents, found = run(quantizer)
    latents = latents.detach() * 3
    found = quantizer.quantize(latents)
    z = rows_of(latents)
    half_l = (levels - 1) * (1 + 1e-3) / 2
    offset = torch.tensor([0.5, 0.0, 0.5, 0.0])
    bounded = torch.tanh(z + torch.atanh(offset / half_l)) * half_l - offset
    codes = bounded.round() / (levels // 2)
    assert torch.equal(rows_of(found.quantized), codes)
    basis = torch.tensor([1, 8, 40, 160])
    assert torch.equal(found.indices.flatten(), ((bounded.round() + levels // 2).long() * basis).sum(dim=1))
    assert found.losses == {}
    everything = quantizer.codes(torch.arange(480).view(-1, 1, 1))
    assert everything.amin() == -1.0
    assert everything[:, 1].unique().tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]


def test_every_level_of_fsq_is_reached_by_standard_normal_latents() -> None:
    for count in range(3, 17):
        found = FSQ((count,)).quantize(torch.randn(64, 1, 16, 16))
        assert len(found.indices.unique()) == count


def brute_force_entropy(logits_of_codes: Tensor, positions: int, groups: list[list[int]], bits: Tensor) -> Tensor:
    """Per-image sum of H(p) - sum over groups of H(mean p of the group's bits), from the whole table of codes."""
    p = logits_of_codes.softmax(dim=1)
    uncertainty = -(p * logits_of_codes.log_softmax(dim=1)).sum(dim=1)
    mean = p.mean(dim=0)
    spread = torch.zeros(())
    for group in groups:
        values = {}
        for code, share in zip(bits.tolist(), mean, strict=True):
            key = tuple(code[i] for i in group)
            values[key] = values.get(key, 0.0) + share
        spread = spread + sum(-share * share.log() for share in values.values())
    return (uncertainty - spread).view(-1, positions).sum(dim=1)


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("group_bits", [5, 2])
def test_lfq_and_bsq_equal_their_formulas(spherical: bool, group_bits: int) -> None:
    cls = BSQ if spherical else LFQ
    quantizer = cls(5, temperature=0.9, group_bits=group_bits)
    latents, found = run(quantizer)
    z = rows_of(F.normalize(latents, dim=1) if spherical else latents)
    bits = torch.tensor(list(itertools.product([0, 1], repeat=5)))
    table = (bits * 2.0 - 1) / (5**0.5 if spherical else 1)
    distances = torch.cdist(z, table).square()
    assert torch.allclose(rows_of(found.quantized), table[distances.argmin(dim=1)])
    powers = torch.tensor([1, 2, 4, 8, 16])
    assert torch.equal(found.indices.flatten(), ((z > 0) * powers).sum(dim=1))
    groups = [list(range(5))[i : i + group_bits] for i in range(0, 5, group_bits)]
    expected = brute_force_entropy(-distances / 0.9, 6, groups, bits)
    assert torch.allclose(found.losses["entropy"], expected, rtol=1e-4, atol=1e-4)  # from squared float32 distances
    assert ("commitment" in found.losses) is not spherical
    if not spherical:
        expected = 0.25 * (z - z.sign()).square().sum(dim=1).view(4, 6).sum(dim=1)
        assert torch.allclose(found.losses["commitment"], expected)


def test_bsq_gradient_equals_the_authors_code() -> None:
    """In their code the straight-through step goes to +-1, and 1 / sqrt(D) multiplies its result."""
    quantizer = BSQ(6)
    latents, weights = torch.randn(2, 6, 3, 3, requires_grad=True), torch.randn(2, 6, 3, 3)
    (found,) = torch.autograd.grad((quantizer.quantize(latents).quantized * weights).sum(), latents)
    unit = F.normalize(latents, dim=1)
    theirs = (unit + (unit.sign() - unit).detach()) / 6**0.5
    (expected,) = torch.autograd.grad((theirs * weights).sum(), latents)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(quantizer.quantize(latents).quantized, theirs)


def test_bsq_entropy_equals_the_authors_code_at_the_default_temperature() -> None:
    """Their soft_entropy_loss with inv_temperature 1: softmax(2 u c) over groups, and its analytical form of a bit."""
    quantizer = BSQ(6, group_bits=3)
    latents = torch.randn(2, 6, 4, 4)
    u = F.normalize(latents, dim=1).permute(0, 2, 3, 1).reshape(-1, 6)
    corners = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3))) / 6**0.5
    p = (2 * torch.einsum("ngc,kc->ngk", u.view(-1, 2, 3), corners)).softmax(dim=-1)
    mean = p.mean(dim=0)
    bits = torch.sigmoid(-4 * u / 6**0.5)
    each = -(bits * bits.log() + (1 - bits) * (1 - bits).log()).sum(dim=1).mean()
    expected = each + (mean * mean.log()).sum()
    found = quantizer.quantize(latents).losses["entropy"].mean() / 16  # a sum over an image's positions
    torch.testing.assert_close(found, expected)


def test_bsq_36_bit_indices_are_exact() -> None:
    """An index of 36 bits is exact, and a codebook of that size is not counted."""
    quantizer = BSQ(36)
    latents = torch.randn(1, 36, 2, 2)
    found = quantizer.quantize(latents)
    assert torch.equal(found.quantized > 0, latents > 0)
    assert torch.equal(quantizer.codes(found.indices), found.quantized)
    assert found.indices.max() > 2**32
    assert found.statistics == quantizer.learn([found]) == {}


def test_residual_vq_sums_its_levels() -> None:
    quantizer = ResidualVQ(VQ(8, 4), 3)
    for level in quantizer.levels:
        spread_out(level)
    assert not torch.equal(quantizer.levels[0].embedding.weight, quantizer.levels[1].embedding.weight)
    latents, found = run(quantizer)
    residual = rows_of(latents)
    total, error = torch.zeros_like(residual), torch.zeros(())
    for depth, level in enumerate(quantizer.levels):
        table = level.embedding.weight
        indices = torch.cdist(residual, table).argmin(dim=1)
        assert torch.equal(found.indices[:, depth].flatten(), indices)
        residual = residual - table[indices]
        total = total + table[indices]
        error = error + residual.square().sum()  # |z - partial sum|^2: equation 6 of arXiv 2203.01941
    assert torch.allclose(rows_of(found.quantized), total, atol=1e-6)
    assert torch.allclose(found.losses["commitment"].sum(), 0.25 * error, rtol=1e-5)
    assert torch.allclose(found.losses["codebook"].sum(), error, rtol=1e-5)


def test_residual_levels_learn_like_separate_quantizers() -> None:
    quantizer = ResidualVQ(EMAVQ(8, 4), 2)
    first, second = EMAVQ(8, 4), EMAVQ(8, 4)
    for alone, level in zip((first, second), quantizer.levels, strict=True):
        alone.load_state_dict(level.state_dict())
    for seed in range(3):
        latents = some_latents(quantizer, seed=seed)
        quantizer.learn([quantizer.quantize(latents)])
        found = first.quantize(latents)
        second.learn([second.quantize(latents - found.quantized)])
        first.learn([found])
    for alone, level in zip((first, second), quantizer.levels, strict=True):
        assert torch.equal(alone.embedding.weight, level.embedding.weight)


def test_gumbel_vq_equals_its_formula() -> None:
    quantizer = GumbelVQ(8, 4, temperature=2.0, final_temperature=0.5, temperature_steps=4)
    for _ in range(2):
        quantizer.learn([run(quantizer)[1]])
    assert quantizer.current_temperature() == pytest.approx(1.0)  # halfway from 2 to 1/2, geometrically
    latents, found = run(quantizer)
    logits = quantizer.proj(latents)
    noise = gumbel_noise(logits, some_latents(quantizer, seed=8))
    soft = rows_of(logits + noise).softmax(dim=1)
    hard = F.one_hot(soft.argmax(dim=1), 8).float()
    table = quantizer.embedding.weight
    expected = (hard + soft - soft.detach()) @ table
    assert torch.allclose(rows_of(found.quantized), expected, atol=1e-6)
    weights = torch.randn_like(expected)
    mine = torch.autograd.grad((rows_of(found.quantized) * weights).sum(), (latents, table), retain_graph=True)
    theirs = torch.autograd.grad((expected * weights).sum(), (latents, table), retain_graph=True)
    for a, b in zip(mine, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    p = logits.softmax(dim=1)
    assert torch.allclose(found.losses["kl"], (p * (p * 8).log()).sum(dim=(1, 2, 3)), rtol=1e-4)
    assert torch.equal(quantizer.eval().quantize(latents).indices, logits.argmax(dim=1))
    quantizer.steps += 100
    assert quantizer.current_temperature() == pytest.approx(0.5)


def test_residual_levels_draw_independent_noise() -> None:
    quantizer = ResidualVQ(GumbelVQ(8, 4), 2)
    for name, value in quantizer.named_parameters():
        if ".proj." in name:
            nn.init.zeros_(value)  # only the noise decides
    indices = run(quantizer)[1].indices
    assert not torch.equal(indices[:, 0], indices[:, 1])


def test_gumbel_noise_has_the_gumbel_distribution() -> None:
    like, seeds = torch.zeros(64, 16, 8, 8), torch.randn(64, 4, 8, 8)
    noise = gumbel_noise(like, seeds)
    # 65,536 draws: mean and standard deviation within 4 standard errors of Euler's constant and pi / sqrt(6).
    assert noise.mean() == pytest.approx(0.57722, abs=4 * 1.2825 / 256)
    assert noise.std() == pytest.approx(1.28255, abs=4 * 1.35 / 256)
    # Uncorrelated between samples, codes and places: |r| of n pairs is below 5 / sqrt(n).
    for a, b in ((noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1]), (noise[..., 1:], noise[..., :-1])):
        r = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
        assert abs(r) < 5 / a.numel() ** 0.5
    assert torch.equal(gumbel_noise(like[:3], seeds[5:8]), noise[5:8])
    plain = gumbel_noise(like, None)
    assert plain.mean() == pytest.approx(0.57722, abs=4 * 1.2825 / 256)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: VQ(1, 4), "expected codebook_size of at least 2 .* got 1, 4"),
        (lambda: VQ(2**20 + 1, 4), "a table has at most 1048576 codes"),
        (lambda: FSQ((8, 2)), r"FSQ: levels=\(8, 2\) must be one number of at least 3 .* use LFQ or BSQ"),
        (lambda: FSQ((3,) * 40), "an index can hold at most"),
        (lambda: LFQ(63), "LFQ: codebook_dim=63 must be from 1 to 62"),
        (lambda: BSQ(4, temperature=0.0), "BSQ: temperature=0.0 must be above 0"),
        (lambda: EMAVQ(8, 4, decay=1.0), r"expected decay in \[0, 1\), got 1\.0"),
        (lambda: ResidualVQ(VQ(8, 4), 0), "expected at least 1 level, got 0"),
        (lambda: ResidualVQ(ResidualVQ(VQ(8, 4))), "raise the levels of that one instead"),
        (lambda: GumbelVQ(8, 4, temperature_steps=0), "temperature_steps=0"),
        (lambda: CodebookCare(restart_below=1.0), "restart_below"),
    ],
)
def test_invalid_quantizer_arguments_are_refused(make: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()  # type: ignore[operator]
