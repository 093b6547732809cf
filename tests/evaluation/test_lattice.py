"""The lattice's score of patterns whose power is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ldm_ae.evaluation.metrics.interface import CannotScoreError, Setting
from ldm_ae.evaluation.metrics.lattice import FEWEST_WINDOWS, ROUNDING_POWER, Lattice, periods, power, window_side
from ldm_ae.images.pixels import RGB
from ldm_ae.images.uint8 import from_levels
from ldm_ae.models import AutoencoderSpec, LatentSpec
from tests.evaluation.stubs import IdentityAutoencoder

SIDE = 160
"""81 windows in an image."""
COORDINATE = torch.arange(SIDE, dtype=torch.float32)
GAIN = (2 * 32 / 3) ** 2
"""(Σw)² / Σw² of a Hann window of 32x32: power of a complex wave of amplitude 1."""


class Downsampling(IdentityAutoencoder):
    """A model of which only the downsample factor counts."""

    def __init__(self, factor: int):
        super().__init__()
        self.factor = factor

    @property
    def spec(self) -> AutoencoderSpec:
        latents = LatentSpec(channels=3, downsample_factor=self.factor, scaling_factor=1.0)
        return AutoencoderSpec(pixels=RGB, latents=latents)


def flat(count: int = 1, noise: float = 0.0) -> Tensor:
    """Return grey levels with white noise."""
    return 128 + noise * torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def scored(reconstructions: Tensor, levels: Tensor) -> Lattice:
    metric = Lattice()
    metric.update(from_levels(reconstructions), from_levels(levels))
    return metric


def test_equal_images_have_no_excess() -> None:
    levels = flat(noise=1.0)
    assert dict(scored(levels, levels).compute()) == {"lattice_db": 0.0, "lattice_contrast_db": 0.0}


def test_white_noise_has_its_variance_as_power() -> None:
    noise = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert float(power(3 * noise).mean()) == pytest.approx(9.0, rel=0.02)  # of 196,608 values


@pytest.mark.parametrize("period", [2, 4, 8])
@pytest.mark.parametrize("direction", ["horizontal", "vertical", "diagonal"])
def test_square_wave_has_its_power_at_its_period_and_direction(period: int, direction: str) -> None:
    place = {
        "horizontal": COORDINATE[None], "vertical": COORDINATE[:, None],
        "diagonal": COORDINATE[None] + COORDINATE[:, None],
    }  # fmt: skip
    wave = torch.where(place[direction].expand(SIDE, SIDE) % period < period / 2, 3.0, -3.0)  # exact in 8 bits
    metric = scored(flat() + wave, flat())
    # The fundamental of a sampled square wave; at period 2 both of its complex waves are one. A plane takes half a
    # percent of the wave with it.
    amplitude = 3.0 if period == 2 else 3.0 * 2 / (period * math.sin(math.pi / period))
    expected = 10 * math.log10(amplitude**2 * GAIN / ROUNDING_POWER)
    lines = metric.details()["lines"]
    assert isinstance(lines, dict)
    found = {name: line["excess_db"] for name, line in lines.items()}
    assert found.pop(f"{direction}_{period}") == pytest.approx(expected, abs=0.03)
    assert max(found.values()) < 1e-3  # float32 transform
    scores = metric.compute()
    assert scores["lattice_db"] == pytest.approx(expected, abs=0.03)
    assert scores["lattice_contrast_db"] == pytest.approx(expected, abs=2)  # the plane's part is around the line


def test_weak_lattice_in_noise_adds_its_power() -> None:
    levels = flat(4, noise=1.0)
    metric = scored(levels + 0.4 * torch.cos(COORDINATE * math.tau / 8), levels)
    # Rounding adds its power to both; 324 windows leave a standard error of the mean power of some 4 %.
    expected = 10 * math.log10(1 + 0.2**2 * GAIN / (1 + ROUNDING_POWER))
    assert metric.compute()["lattice_db"] == pytest.approx(expected, abs=0.4)
    assert metric.compute()["lattice_contrast_db"] == pytest.approx(expected, abs=0.4)


def test_added_noise_is_excess_without_contrast_and_blur_is_a_deficit() -> None:
    levels = flat(4, noise=1.0)
    noise = torch.randn(levels.shape, generator=torch.Generator().manual_seed(1))
    scores = scored(levels + 2 * noise, levels).compute()
    assert scores["lattice_db"] == pytest.approx(10 * math.log10((5 + ROUNDING_POWER) / (1 + ROUNDING_POWER)), abs=0.6)
    assert abs(scores["lattice_contrast_db"]) < 0.8  # the largest of nine, each with an error of some 0.3 dB
    scores = scored(flat(4), levels).compute()
    assert scores["lattice_db"] == pytest.approx(10 * math.log10(ROUNDING_POWER / (1 + ROUNDING_POWER)), abs=0.6)


def test_ramps_and_slow_waves_do_not_leak_to_the_periods() -> None:
    levels = flat(2, noise=1.0)
    ramp = (COORDINATE[None] - COORDINATE[:, None]) / 2 + 10 * torch.sin(COORDINATE * math.tau / 150)
    for scores in (scored(levels + ramp, levels).compute(), scored(levels, levels + ramp).compute()):
        assert abs(scores["lattice_db"]) < 0.5  # other rounding


def test_few_flat_windows_have_no_score() -> None:
    levels = flat(2)
    levels[1:] += 20 * torch.randn(levels[1:].shape, generator=torch.Generator().manual_seed(0))
    metric = scored(levels, levels)
    assert metric.details()["flat_windows"] == 81
    assert metric.details()["images_with_flat_windows"] == 1
    with pytest.raises(CannotScoreError, match=f"at least {FEWEST_WINDOWS} flat windows of 32x32 pixels .*, got 0"):
        scored(levels[1:], levels[1:]).compute()


def test_periods_and_windows_follow_the_models_strides() -> None:
    assert [periods(factor) for factor in (2, 8, 28, 32)] == [[2], [2, 4, 8], [2, 4, 8, 16], [2, 4, 8, 16, 32]]
    assert [window_side(factor) for factor in (2, 8, 16, 32)] == [32, 32, 64, 128]
    metric = Lattice()
    metric.prepare(Setting(model=Downsampling(16), device=torch.device("cpu")))
    metric.reset()
    with pytest.raises(CannotScoreError, match="at least 64x64 pixels"):
        metric.require((1, 3, 48, 48))
    metric.update(from_levels(flat()), from_levels(flat()))
    lines = metric.details()["lines"]
    assert isinstance(lines, dict)
    assert "diagonal_16" in lines
    with pytest.raises(CannotScoreError, match="strides"):
        metric.prepare(Setting(model=Downsampling(1), device=torch.device("cpu")))
