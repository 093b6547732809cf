"""Metrics of what latents are like: their spectrum, their equivariance, the decoder's tolerance of noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_ae.evaluation.metrics.equivariance import Equivariance, halve
from ldm_ae.evaluation.metrics.interface import Metric, Setting
from ldm_ae.evaluation.metrics.noise_tolerance import LEVELS, NoiseTolerance
from ldm_ae.evaluation.metrics.spectrum import LatentSpectrum, frequencies, normalized_power
from ldm_ae.evaluation.scoring import Scoring
from ldm_ae.models import AutoencoderSpec, LatentSpec, Posterior
from tests.evaluation.stubs import IdentityAutoencoder, PointPosterior, pictures


class Scaled(IdentityAutoencoder):
    """An identity whose latents are scaled by 4, as if their standard deviation were 0.25."""

    @property
    def spec(self) -> AutoencoderSpec:
        return AutoencoderSpec(
            pixels=super().spec.pixels, latents=LatentSpec(channels=3, downsample_factor=1, scaling_factor=4.0)
        )


class Ramped(IdentityAutoencoder):
    """The latents are the pixels plus a ramp from 0 to 1 over the columns: no encoder of turned images would do so."""

    def encode(self, pixel_values: Tensor) -> Posterior:
        return PointPosterior(pixel_values + torch.linspace(0, 1, pixel_values.shape[3]))

    def decode(self, latents: Tensor) -> Tensor:
        return latents - torch.linspace(0, 1, latents.shape[3])


def scores(metric: Metric, model: IdentityAutoencoder, images: Tensor, batch_size: int = 4) -> dict[str, float]:
    scoring = Scoring([metric], Setting(model=model, device=torch.device("cpu")))
    for batch in images.split(batch_size):
        posterior = model.encode(batch)
        scoring.update(model.decode(posterior.mode()), batch, posterior)
    found = scoring.compute()
    assert not scoring.skipped
    return found


def from_power(exponent: float, count: int, size: int) -> Tensor:
    """Return latents (count, 3, size, size) whose power falls as the frequency to `exponent`."""
    fft = pytest.importorskip("scipy.fft")
    frequency = frequencies(size, size).numpy()
    frequency[0, 0] = 1.0
    noise = np.random.default_rng(0).standard_normal((count, 3, size, size))
    return torch.from_numpy(fft.idctn(noise * frequency ** (exponent / 2), axes=(2, 3), norm="ortho")).float()


def test_power_is_that_of_scipys_cosine_transform() -> None:
    fft = pytest.importorskip("scipy.fft")
    latents = torch.randn(2, 3, 6, 9, dtype=torch.float64)
    expected = torch.from_numpy(fft.dctn(latents.numpy(), axes=(2, 3), norm="ortho")) ** 2
    expected[..., 0, 0] = 0.0
    expected /= expected.sum(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(normalized_power(latents), expected)


@pytest.mark.parametrize("exponent", [0.0, -1.0, -2.0])
def test_slope_is_the_exponent_of_the_latents_power(exponent: float) -> None:
    latents = from_power(exponent, 16, 32)
    found = scores(LatentSpectrum(), IdentityAutoencoder(), latents)
    assert found["latent_spectrum_slope"] == pytest.approx(exponent, abs=0.05)


def test_spectrum_of_white_noise_and_of_one_frequency() -> None:
    noise = scores(LatentSpectrum(), IdentityAutoencoder(), torch.randn(16, 3, 32, 32))
    assert noise["latent_high_frequencies"] == pytest.approx(1 - math.pi / 16, abs=0.02)
    column = torch.cos(math.pi / 32 * 4 * (torch.arange(32) + 0.5))  # 4 half periods: 1/16 cycles per latent
    wave = column.expand(1, 3, 32, 32)
    assert scores(LatentSpectrum(), IdentityAutoencoder(), wave)["latent_high_frequencies"] == pytest.approx(
        0, abs=1e-9
    )
    fast = torch.cos(math.pi / 32 * 24 * (torch.arange(32) + 0.5)).expand(1, 3, 32, 32)
    assert scores(LatentSpectrum(), IdentityAutoencoder(), fast)["latent_high_frequencies"] == pytest.approx(1)


def test_spectrum_does_not_depend_on_scale_shift_and_batches() -> None:
    latents = from_power(-1.0, 6, 16)
    expected = scores(LatentSpectrum(), IdentityAutoencoder(), latents)
    changed = latents * torch.tensor([1.0, 5.0, 0.2]).view(3, 1, 1) + 3.0
    found = scores(LatentSpectrum(), IdentityAutoencoder(), changed, batch_size=1)
    assert found == pytest.approx(expected, rel=1e-3)
    profile = LatentSpectrum()
    scores(profile, IdentityAutoencoder(), latents)
    frequency, power = profile.profile()
    assert frequency == sorted(frequency)
    assert power[0] > power[-1]
    assert profile.details() == {"cycles_per_latent": frequency, "power": power}


def test_constant_latents_have_no_spectrum() -> None:
    scoring = Scoring([LatentSpectrum()], Setting(model=None, device=torch.device("cpu")))
    images = torch.ones(2, 3, 8, 8)
    scoring.update(images, images, PointPosterior(images))
    assert scoring.compute() == {}
    assert scoring.skipped == {"latent_spectrum": "Latent spectrum needs latents that are not constant"}


def test_equivariance_of_the_identity_is_complete() -> None:
    found = scores(Equivariance(), IdentityAutoencoder(), pictures(4))
    assert found == {
        "equivariance_psnr_scale": 100.0, "equivariance_psnr_rotation": 100.0,
        "equivariance_error_scale": 0.0, "equivariance_error_rotation": 0.0,
    }  # fmt: skip


def test_equivariance_error_is_relative_to_the_variance() -> None:
    images = pictures(4)
    found = scores(Equivariance(), Ramped(), images, batch_size=3)
    ramp = torch.linspace(0, 1, 32).expand(32, 32)
    turned = images.rot90(1, dims=(2, 3)) + ramp
    difference = ramp - ramp.rot90(1)
    variance = (turned - turned.mean(dim=(2, 3), keepdim=True)).square().sum()
    expected = 12 * difference.square().sum() / variance
    assert found["equivariance_error_rotation"] == pytest.approx(float(expected), rel=1e-5)
    # The decoder subtracts its ramp from latents that hold the turned one.
    wrong = (images.rot90(1, dims=(2, 3)) - difference).clamp(-1, 1)
    levels = ((wrong + 1) * 127.5).round() - ((images.rot90(1, dims=(2, 3)) + 1) * 127.5).round()
    psnr = (10 * torch.log10(255**2 / levels.square().mean(dim=(1, 2, 3)))).mean()
    assert found["equivariance_psnr_rotation"] == pytest.approx(float(psnr), abs=1e-3)


def test_halving_is_filtered_against_aliasing() -> None:
    checker = (torch.arange(16)[:, None] + torch.arange(16)).remainder(2).float().expand(1, 1, 16, 16)
    assert halve(checker)[..., 2:-2, 2:-2].sub(0.5).abs().max() < 1e-6
    assert F.interpolate(checker, scale_factor=0.5, mode="nearest").std() == 0


def test_noise_is_in_units_of_scaled_latents() -> None:
    images = pictures(6) * 0.5  # no level is clamped
    plain, scaled = (scores(NoiseTolerance(), model, images) for model in (IdentityAutoencoder(), Scaled()))
    for level in LEVELS:
        expected = 10 * math.log10(4 / level**2)
        if level == 0.1:
            assert plain[f"psnr_noise_{level}"] == pytest.approx(expected, abs=0.1)
        assert scaled[f"psnr_noise_{level}"] == pytest.approx(expected + 20 * math.log10(4), abs=0.1)
    assert scores(NoiseTolerance(), Scaled(), images, batch_size=1) == scaled


def test_metrics_of_a_model_are_skipped_where_they_cannot_be() -> None:
    small = Scoring([LatentSpectrum(), Equivariance()], Setting(model=None, device=torch.device("cpu")))
    images = pictures(1, size=16)[..., :3]
    small.update(images, images, PointPosterior(images))
    assert small.skipped == {
        "latent_spectrum": "Latent spectrum needs latents of at least 4x4, got 16x3",
        "equivariance": "Equivariance needs the latents of a model",
    }
