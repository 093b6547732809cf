"""Shapes are tried without work and without a trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ldm_ae.core.dry_run import RefusedError, dry_run
from ldm_ae.discriminators import PatchDiscriminator


def forward(network, given):
    return network(given[0])


def test_dry_run_leaves_no_side_effects(capfd: pytest.CaptureFixture[str]) -> None:
    network = PatchDiscriminator(ndf=8)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random = torch.get_rng_state()
    assert dry_run(network, forward, [(2, 3, 64, 64)]).shape == (2, 1, 6, 6)
    with pytest.raises(RefusedError, match="Kernel size can't be greater than actual input size"):
        dry_run(network, forward, [(2, 3, 8, 8)])
    after = network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())  # also the batches that it counts
    assert torch.equal(torch.get_rng_state(), random)
    assert capfd.readouterr() == ("", "")  # torch logs a traceback of its own


def test_dry_run_allocates_no_memory() -> None:
    """Images of a terabyte."""
    network = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.AvgPool2d(2))
    assert dry_run(network, forward, [(64, 3, 2**15, 2**15)]).shape == (64, 64, 2**14, 2**14)


class Counting(nn.Module):
    """Looks at numbers, which a fake tensor does not have, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 4)
        self.calls = 0

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        assert -1 <= float(pixel_values.min()) < float(pixel_values.max()) <= 1
        return self.layer(pixel_values)


def test_dry_run_computes_data_dependent_operations() -> None:
    network = Counting()
    random = torch.get_rng_state()
    assert dry_run(network, forward, [(8, 3, 5, 5)]).shape == (2, 1, 2, 2)  # of two samples
    with pytest.raises(RefusedError, match="Kernel size"):
        dry_run(network, forward, [(8, 3, 3, 3)])
    assert network.calls == 0
    assert torch.equal(torch.get_rng_state(), random)
