"""Functions that quantizers share: the nearest code, k-means, restarts."""

from __future__ import annotations

import pytest
import torch

from ldm_ae.quantizers import EMAVQ, VQ, CodebookCare, CosineVQ, Quantizer, nearest_codes
from ldm_ae.quantizers.kmeans import draw_positions, kmeans
from ldm_ae.quantizers.processes import GlobalRows


@pytest.mark.parametrize("chunk_elements", [1, 100, 2**24])
def test_nearest_code_does_not_depend_on_chunks(chunk_elements: int) -> None:
    rows, table = torch.randn(50, 6), torch.randn(17, 6)
    expected = (rows[:, None].double() - table[None].double()).square().sum(dim=2).argmin(dim=1)
    found = nearest_codes(rows, table, chunk_elements=chunk_elements)
    assert torch.equal(found, expected)
    assert torch.equal(nearest_codes(rows.bfloat16().float(), table), nearest_codes(rows.bfloat16(), table))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_codes(rows, table), expected)


def test_nearest_code_breaks_ties_by_the_first_index() -> None:
    table = torch.ones(3, 2)
    assert nearest_codes(torch.randn(4, 2), table).tolist() == [0, 0, 0, 0]


def clusters(spread: float = 0.01) -> tuple[torch.Tensor, torch.Tensor]:
    """120 rows around 6 well-separated means, in a fixed mixed order."""
    means = 5 * torch.eye(6)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    return means, (means.repeat(20, 1) + spread * torch.randn(120, 6))[order]


def test_kmeans_equals_lloyds_algorithm() -> None:
    rows = torch.randn(60, 3)
    centers = rows[draw_positions(60, 4, seed=3)]
    for _ in range(5):
        nearest = torch.cdist(rows, centers).argmin(dim=1)
        centers = torch.stack([rows[nearest == k].mean(dim=0) for k in range(4)])
    assert torch.allclose(kmeans([rows[:13], rows[13:]], 4, iterations=5, seed=3), centers, atol=1e-6)


def test_kmeans_supports_fewer_rows_than_clusters() -> None:
    rows = torch.randn(5, 3)
    found = kmeans([rows], 9, iterations=3, seed=0)
    assert torch.equal(found.sort(dim=0).values, rows.sort(dim=0).values)


def test_global_rows_follow_the_order_of_the_global_batch() -> None:
    rows = torch.randn(10, 2)
    numbered = GlobalRows([rows[:3], rows[3:4], rows[4:]])
    assert numbered.total == 10
    positions = torch.tensor([9, 0, 3, 2, 9])
    assert torch.equal(numbered.take(positions), rows[positions])


@pytest.mark.parametrize("cls", [VQ, EMAVQ, CosineVQ])
def test_kmeans_initializes_the_codebook(cls: type[Quantizer]) -> None:
    _, rows = clusters()
    latents = rows.view(4, 30, 1, 6).movedim(3, 1)
    care = CodebookCare(kmeans_iterations=10, seed=1)
    quantizer = cls(24, 6, care=care)  # type: ignore[call-arg]
    found = quantizer.quantize(latents)
    if cls is not EMAVQ:
        sum(term.sum() for term in found.losses.values()).backward()  # type: ignore[union-attr]
        assert quantizer.embedding.weight.grad.abs().sum() > 0
    quantizer.learn([found])
    if cls is not EMAVQ:
        assert not quantizer.embedding.weight.grad.any()  # it was of codes that are gone
    wanted = torch.nn.functional.normalize(latents, dim=1) if cls is CosineVQ else latents
    after = quantizer.quantize(latents)
    # 24 centers for 6 clusters of radius 0.02: every latent is next to one.
    assert (after.quantized - wanted).abs().max() < 0.1
    centers = kmeans([wanted.movedim(1, 3).reshape(-1, 6)], 24, iterations=10, seed=care.seed * 1_000_003)
    assert torch.allclose(quantizer.embedding.weight, centers, atol=1e-6)
    first = quantizer.embedding.weight.clone()
    quantizer.learn([quantizer.quantize(-latents)])  # k-means again would go there
    # From here on only gradients, or averages, move the codes, slowly.
    assert (quantizer.embedding.weight - first).abs().max() <= (2.0 if cls is EMAVQ else 0.0)


@pytest.mark.parametrize("cls", [VQ, EMAVQ])
def test_dead_codes_restart_at_latents(cls: type[Quantizer]) -> None:
    _, rows = clusters()
    latents = rows.view(4, 30, 1, 6).movedim(3, 1)
    quantizer = cls(16, 6, care=CodebookCare(restart_below=0.2, usage_decay=0.5))  # type: ignore[call-arg]
    with torch.no_grad():
        quantizer.embedding.weight.fill_(100.0)
        quantizer.embedding.weight[3] = 0.0
        if isinstance(quantizer, EMAVQ):
            quantizer.ema_sums.copy_(quantizer.embedding.weight)
    assert quantizer.quantize(latents).indices.unique().tolist() == [3]
    for step in range(3):
        # The usage of an unused code is 1/2, 1/4, 1/8: below 0.2 at the third step.
        far = quantizer.embedding.weight.amax(dim=1) > 20
        assert far.sum() == 15, step
        statistics = quantizer.learn([quantizer.quantize(latents)])
        assert statistics["codebook_usage"] == 1 / 16
    table = quantizer.embedding.weight
    restarted = [k for k in range(16) if k != 3]
    assert (table[restarted][:, None] == rows).all(dim=2).any(dim=1).all()
    assert len(table[restarted].unique(dim=0)) == 15
    assert (quantizer.usage_share[restarted] == 1.0).all()
    used = quantizer.learn([quantizer.quantize(latents)])["codebook_usage"]
    assert used > 0.8
    if isinstance(quantizer, EMAVQ):
        # The moving averages agree with the new codes, so they do not jump away at once.
        assert torch.cdist(quantizer.embedding.weight[restarted], rows).amin(dim=1).max() < 0.1


@pytest.mark.parametrize("cls", [VQ, EMAVQ])
def test_overflow_leaves_the_codebook_finite(cls: type[Quantizer]) -> None:
    quantizer = cls(16, 6, care=CodebookCare(restart_below=0.9, usage_decay=0.0))  # type: ignore[call-arg]
    latents = torch.randn(4, 6, 5, 5)
    latents[0, 0, 0, 0] = float("nan")
    latents[1:3, 2] = float("inf")
    for _ in range(4):
        quantizer.learn([quantizer.quantize(latents)])
    assert all(value.isfinite().all() for value in quantizer.state_dict().values())
    assert len(quantizer.quantize(torch.randn(4, 6, 5, 5)).indices.unique()) > 8  # restarts went on with the others


def test_restarts_differ_between_steps_and_seeds() -> None:
    drawn = {tuple(draw_positions(1000, 5, seed).tolist()) for seed in range(20)}
    assert len(drawn) == 20


def test_vq_without_codebook_care_has_only_the_embedding_as_state() -> None:
    assert list(VQ(8, 4).state_dict()) == ["embedding.weight"]
