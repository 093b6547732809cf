"""Warnings on faults of a model that its scores do not show."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ldm_ae.evaluation import evaluate, named_metrics, write_report
from ldm_ae.evaluation.activation_ranges import ActivationRanges
from ldm_ae.evaluation.metrics.psnr import PSNR
from ldm_ae.evaluation.report.summary import summary_lines
from ldm_ae.evaluation.result import Evaluation
from ldm_ae.evaluation.warnings import model_warnings, scale_warning, scaled_std, warned
from ldm_ae.models import ChannelStatistics, KLAutoencoder, LatentSpec, OverflowGuard
from tests.evaluation.stubs import IdentityAutoencoder, loader

SAFE = ActivationRanges(modules={"encoder": 10.0}, images=1)


def statistics(latents: torch.Tensor) -> ChannelStatistics:
    found = ChannelStatistics(latents.shape[1])
    found.update(latents)
    return found


def latents() -> torch.Tensor:
    """Four channels of different means and standard deviations, (8, 4, 6, 6)."""
    noise = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return noise * torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1) + torch.arange(4).view(1, 4, 1, 1)


@pytest.mark.parametrize(
    "scale",
    [
        {"scaling_factor": 0.3, "shift_factor": 1.5},
        {"scaling_factor": -2.0},
        {"scaling_factor": 0.5, "latents_mean": (0.0, 1.0, 2.0, 2.0), "latents_std": (1.0, 2.0, 1.5, 4.0)},
    ],
)
def test_standard_deviation_of_scaled_latents_follows_from_the_statistics(scale: dict) -> None:
    spec = LatentSpec(channels=4, downsample_factor=4, **scale)
    direct = spec.scale(latents()).std(correction=0)
    assert scaled_std(spec, statistics(latents())) == pytest.approx(float(direct), rel=1e-9)  # float64 throughout


def test_standard_deviation_of_packed_latents_follows_from_their_channels() -> None:
    vectors = {"latents_mean": (0.5,) * 16, "latents_std": (2.0,) * 16}
    spec = LatentSpec(channels=4, downsample_factor=4, scaling_factor=1.0, patch_size=2, **vectors)
    direct = spec.scale(latents()).std(correction=0)
    assert scaled_std(spec, statistics(latents())) == pytest.approx(float(direct), rel=1e-9)


def scaled_model(model: KLAutoencoder, factor: float) -> KLAutoencoder:
    model.set_scaling(scaling_factor=factor, shift_factor=0.0)
    return model


def test_wrong_scale_is_a_warning_and_a_right_one_is_not(tiny_model: KLAutoencoder) -> None:
    found = statistics(latents())
    right = 1 / found.pooled_std
    for factor in (right, 1.9 * right, right / 1.9):
        assert model_warnings(scaled_model(tiny_model, factor), found, SAFE) == []
    for factor, std in ((8 * right, "8"), (right / 8, "0.125")):
        (warning,) = model_warnings(scaled_model(tiny_model, factor), found, SAFE)
        assert f"have a standard deviation of {std} where diffusion models expect 1: scaling_factor" in warning.text
        assert "--scaling measure" in warning.text
        assert warned("psnr_noise_0.3", [warning]) == f"of latents whose standard deviation is {std}, not 1"
        assert warned("psnr", [warning]) == ""


def test_missing_scale_is_named_as_missing(tiny_model: KLAutoencoder) -> None:
    (warning,) = scale_warning(tiny_model, statistics(latents()))
    assert "expect 1: no scale was measured." in warning.text
    near_one = statistics(latents() / statistics(latents()).pooled_std)
    assert scale_warning(tiny_model, near_one) == []


def test_models_without_a_scale_and_constant_latents_have_no_warning_of_scale(tiny_model: KLAutoencoder) -> None:
    assert scale_warning(IdentityAutoencoder(), statistics(latents()[:, :3])) == []
    assert scale_warning(tiny_model, statistics(torch.ones(2, 4, 6, 6))) == []


def test_activations_beyond_fp16_are_a_warning_in_every_precision(tiny_model: KLAutoencoder) -> None:
    unsafe = ActivationRanges(modules={"decoder": 1e5}, images=1)
    found = statistics(latents() / statistics(latents()).pooled_std)
    (warning,) = model_warnings(tiny_model, found, unsafe)
    assert warning.text == unsafe.line()
    assert "not safe in fp16" in warning.text
    guarded = OverflowGuard(tiny_model)
    guarded.fallbacks = 3
    (warning,) = model_warnings(guarded, found, unsafe)
    assert "fp16 overflowed in the scores: 3 passes over batches gave values that are not finite" in warning.text


@pytest.fixture
def overflowed(tiny_model: KLAutoencoder, caplog: pytest.LogCaptureFixture) -> Evaluation:
    """The evaluation in fp16 of a model whose decoder overflows there, and whose scale is wrong."""
    with torch.no_grad():
        tiny_model.net.decoder.conv_in.weight *= 2.0**20
    found = evaluate(
        scaled_model(tiny_model, 1e3), loader(4), source="pictures", transform_description={}, model_name="tiny",
        metrics=named_metrics(["psnr", "noise_tolerance"]), precision="fp16", device="cpu", pictures=1,
    )  # fmt: skip
    assert any("fp16 overflowed" in message for message in caplog.messages)
    return found


def test_warnings_are_in_all_forms_of_an_evaluation(overflowed: Evaluation, tmp_path: Path) -> None:
    scale, overflow = overflowed.warnings
    assert "expect 1: scaling_factor 1000.00000 does not fit them" in scale.text
    assert "fp16 overflowed in the scores" in overflow.text
    lines = summary_lines(overflowed)
    assert lines[-2:] == [f"warning: {warning.text}" for warning in (scale, overflow)]
    (noise,) = [line for line in lines if line.startswith("psnr_noise_0.1")]
    assert scale.caution in noise
    write_report(overflowed, tmp_path)
    stored = json.loads((tmp_path / "metrics.json").read_text())["warnings"]
    assert [warning["text"] for warning in stored] == [scale.text, overflow.text]
    page = (tmp_path / "report.html").read_text()
    assert "<dt>Warning</dt><dd>Fp16 overflowed in the scores" in page
    assert "The scaled latents have a standard deviation" in page
    without = summary_lines(replace(overflowed, warnings=[]))
    assert not any("warning" in line for line in without)


class NotFinite(PSNR):
    """A score that is not finite."""

    name = "nan"

    def compute(self) -> float:
        return float("nan")


def test_score_that_is_not_finite_is_skipped_with_its_reason(tiny_model: KLAutoencoder, tmp_path: Path) -> None:
    found = evaluate(
        tiny_model, loader(3), source="pictures", transform_description={}, model_name="tiny",
        metrics=[PSNR(), NotFinite()], device="cpu", pictures=1,
    )  # fmt: skip
    assert "nan" not in found.scores
    assert found.skipped == {"nan": "nan is not finite for this model and these images (PSNR)"}
    write_report(found, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text())["protocol"]["skipped"] == found.skipped
