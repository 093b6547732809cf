"""Faults of models that scores do not show: in every form of a comparison, and without a place among the best."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ldm_ae
from ldm_ae.comparison import Comparison
from ldm_ae.comparison.result import best_models
from ldm_ae.models import KLAutoencoder
from tests.pictures import write_class_folders

SCALES = {"right": 1.0, "large": 50.0, "other": 1.2}
METRICS = ("psnr", "noise_tolerance")


def make(scale: float, *, gain: float = 1.0) -> KLAutoencoder:
    torch.manual_seed(0)
    model = KLAutoencoder(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, mid_block_add_attention=False
    )
    model.set_scaling(scaling_factor=scale, shift_factor=0.0)
    with torch.no_grad():
        model.net.decoder.conv_in.weight *= gain
    return model


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def found(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    """One model with three scales, two of which are about right, and its folder."""
    out = tmp_path_factory.mktemp("out") / "comparison"
    models = {name: make(scale) for name, scale in SCALES.items()}
    return ldm_ae.compare(models, images, size=32, limit=4, metrics=METRICS, out=out), out


def test_models_that_differ_by_their_scale_alone_have_their_own_results(found: tuple[Comparison, Path]) -> None:
    scores = found[0].scores
    assert len({model["psnr"] for model in scores.values()}) == 1
    assert len({model["psnr_noise_0.3"] for model in scores.values()}) == 3
    assert len(list((found[1] / "models").iterdir())) == 3


def test_wrong_scale_is_not_ranked_by_scores_with_noise(found: tuple[Comparison, Path]) -> None:
    models = found[0].models
    assert [len(model.warnings) for model in models] == [0, 1, 0]
    values = {"right": 20.0, "large": 30.0, "other": 21.0}  # noise is small beside latents that are too large
    models = [replace(model, scores=dict.fromkeys(("psnr", "psnr_noise_0.3"), values[model.name])) for model in models]
    assert best_models(models, "psnr_noise_0.3") == ["other"]
    assert best_models(models, "psnr") == ["large"]


def test_warnings_are_in_all_forms_of_a_comparison(found: tuple[Comparison, Path]) -> None:
    comparison, out = found
    (warning,) = comparison.models[1].warnings
    assert "standard deviation of" in warning.text
    assert f"large: warning: {warning.text}" in repr(comparison).splitlines()
    stored = json.loads((out / "metrics.json").read_text())["models"]
    assert [entry["text"] for entry in stored["large"]["warnings"]] == [warning.text]
    assert stored["right"]["warnings"] == []
    page = (out / "compare.html").read_text()
    assert "<b>1 warning</b>" in page
    assert f"<b>large</b> {warning.text}" in page
    assert page.count(f'title="Not ranked, as it is {warning.caution}."') == 2  # at both levels of noise


def test_overflow_in_fp16_is_a_warning_and_its_scores_are_those_of_fp32(images: Path) -> None:
    models = {"safe": make(1.0), "overflows": make(1.0, gain=2.0**22)}
    options = {"size": 32, "limit": 2, "metrics": METRICS, "pictures": 1}
    half = ldm_ae.compare(models, images, precision="fp16", **options)  # type: ignore[arg-type]
    safe, overflows = half.models
    assert safe.warnings == []
    assert "fp16 overflowed in the scores" in overflows.warnings[0].text
    full = ldm_ae.compare({"overflows": models["overflows"]}, images, **options)  # type: ignore[arg-type]
    for key in ("psnr", "psnr_noise_0.3"):
        assert overflows.scores[key] == pytest.approx(full.scores["overflows"][key], abs=0.01)  # the encoder is fp16
    (unsafe,) = full.models[0].warnings
    assert "not safe in fp16" in unsafe.text
