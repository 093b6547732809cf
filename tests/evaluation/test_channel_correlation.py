"""Correlation between channels, and the effective number of channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm_ae.evaluation.metrics import channel_correlation as module
from ldm_ae.evaluation.metrics.channel_correlation import ChannelCorrelation
from ldm_ae.evaluation.metrics.interface import Setting
from ldm_ae.evaluation.scoring import Scoring
from tests.evaluation.stubs import IdentityAutoencoder, PointPosterior


def measure(latents: Tensor, batch_size: int = 4) -> tuple[dict[str, float], ChannelCorrelation, Scoring]:
    metric = ChannelCorrelation()
    scoring = Scoring([metric], Setting(model=IdentityAutoencoder(), device=torch.device("cpu")))
    for batch in latents.split(batch_size):
        scoring.update(batch, batch, PointPosterior(batch))
    return scoring.compute(), metric, scoring


def test_correlations_equal_numpys() -> None:
    latents = torch.randn(6, 3, 8, 8)
    latents[:, 1] = 0.5 * latents[:, 0] + 2.0 * latents[:, 1] + 3.0
    found, _, scoring = measure(latents)
    expected = np.corrcoef(latents.double().movedim(1, 0).flatten(1).numpy())
    np.testing.assert_allclose(scoring.details["channel_correlation"]["correlations"], expected, atol=5e-5)  # 4 digits
    assert found["channel_correlation"] == pytest.approx(np.abs(expected)[~np.eye(3, dtype=bool)].mean(), rel=1e-9)
    other, _, _ = measure(latents, batch_size=1)
    assert other == pytest.approx(found, rel=1e-9)


def test_effective_channels_of_copies_and_of_unrelated_channels() -> None:
    one = torch.randn(8, 1, 16, 16)
    copies, _, _ = measure(torch.cat([one, -one, one], dim=1))
    assert copies == pytest.approx({"effective_channels": 1.0, "channel_correlation": 1.0})
    unrelated, _, _ = measure(torch.randn(8, 3, 32, 32))
    assert unrelated["effective_channels"] == pytest.approx(3.0, abs=0.01)
    assert unrelated["channel_correlation"] == pytest.approx(0.0, abs=0.03)


def test_constant_channel_has_no_correlation_and_is_not_effective() -> None:
    latents = torch.randn(8, 3, 32, 32)
    latents[:, 2] = 5.0
    found, _, scoring = measure(latents)
    assert found["effective_channels"] == pytest.approx(2.0, abs=0.01)
    rows = scoring.details["channel_correlation"]["correlations"]
    assert (rows[2], rows[0][2]) == ([0.0, 0.0, 1.0], 0.0)


def test_constant_latents_have_no_correlations() -> None:
    found, _, scoring = measure(torch.ones(2, 3, 4, 4))
    assert found == scoring.details == {}
    assert scoring.skipped == {"channel_correlation": "Channel correlation needs latents that are not constant"}


def test_matrix_of_many_channels_is_not_in_the_details(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_MATRIX", 2)
    found, _, scoring = measure(torch.randn(2, 3, 4, 4))
    assert set(found) == {"channel_correlation", "effective_channels"}
    assert scoring.details == {}
