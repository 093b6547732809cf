"""A start from which plain vector quantization collapses and other quantizers do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ldm_ae.models import VQAutoencoder
from ldm_ae.quantizers import EMAVQ, FSQ, VQ, CodebookCare, Quantizer
from ldm_ae.quantizers.codebook import ManagedCodebook
from ldm_ae.training.monitoring.alarms import PATIENCE, Alarms
from tests.evaluation.stubs import pictures

CODES = 64
STEPS = 40
RESTARTS = CodebookCare(restart_below=0.5, usage_decay=0.8)
KMEANS = CodebookCare(kmeans_iterations=5)


def train(quantizer: Quantizer) -> tuple[dict[str, float], float]:
    """Statistics and mean absolute error of the last step. One code starts amid the latents, the others far off."""
    torch.manual_seed(0)
    model = VQAutoencoder(
        quantizer=quantizer, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        mid_block_add_attention=False,
    )  # fmt: skip
    if isinstance(quantizer, ManagedCodebook):
        codes = 30.0 * torch.randn(CODES, 4)
        codes[0] = 0.0
        quantizer.start_from(codes)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    images = pictures(8, 16)
    for _ in range(STEPS):
        reconstructions, posterior = model(images)
        error = (reconstructions - images).abs().mean()
        terms = [term.mean() / posterior.mode()[0].numel() for term in posterior.regularization().values()]
        optimizer.zero_grad()
        (error + sum(terms)).backward()
        statistics = model.learn([posterior])
        optimizer.step()
    return {name: float(value) for name, value in statistics.items()}, float(error.detach())


@pytest.mark.slow
def test_plain_vq_collapses_and_other_quantizers_do_not() -> None:
    """Plain VQ moves only the one code that is chosen. Moving averages alone do not help either: they, too,
    move only what is chosen; EMA is tried with restarts and with k-means."""
    plain, plain_error = train(VQ(CODES, 4))
    assert plain["codebook_usage"] <= 2 / CODES
    assert plain["codebook_perplexity"] < 1.1
    alarms = Alarms()
    heard = [list(alarms.check(plain)) for _ in range(PATIENCE)]
    assert heard[-1] == ["codebook_collapsed"]
    others: dict[str, tuple[Callable[[], Quantizer], float]] = {
        "restarts": (lambda: VQ(CODES, 4, care=RESTARTS), 30.0),
        "k-means": (lambda: VQ(CODES, 4, care=KMEANS), 30.0),
        "EMA with restarts": (lambda: EMAVQ(CODES, 4, decay=0.8, care=RESTARTS), 30.0),
        "EMA with k-means": (lambda: EMAVQ(CODES, 4, decay=0.8, care=KMEANS), 30.0),
        "FSQ": (lambda: FSQ((4, 4, 4)), 6.0),  # it has no table to start badly, nor one that follows the latents
    }
    for name, (make, least) in others.items():
        statistics, error = train(make())
        assert statistics["codebook_perplexity"] > least, name
        assert error < 0.8 * plain_error, name
