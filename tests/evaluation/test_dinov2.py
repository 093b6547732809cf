"""The Fréchet distance over DINOv2's class token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_ae.core.errors import UserError
from ldm_ae.evaluation import named_metrics
from ldm_ae.evaluation.metrics import dinov2 as module
from ldm_ae.evaluation.metrics.dinov2 import RFDD, DINOv2Features
from ldm_ae.evaluation.metrics.frechet import RELIABLE_IMAGES
from ldm_ae.evaluation.metrics.interface import Setting
from ldm_ae.evaluation.scoring import Scoring
from ldm_ae.features import DINOv2
from ldm_ae.images.uint8 import rounded
from tests.evaluation.stubs import pictures

transformers = pytest.importorskip("transformers")

ARCHITECTURE = {
    "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 56,
    "image_size": 224,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DINOv2 with random weights, as transformers stores it."""
    place = tmp_path_factory.mktemp("dinov2") / "tiny"
    torch.manual_seed(0)
    transformers.Dinov2Model(transformers.Dinov2Config(**ARCHITECTURE)).save_pretrained(place)
    return place


@pytest.mark.slow
def test_rfdd_equals_a_direct_computation(folder: Path) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    originals = pictures(12, 40)
    reconstructions = originals * 0.5
    metric = RFDD(folder)
    scoring = Scoring([metric], Setting(model=None, device=torch.device("cpu")))
    for decoded, real in zip(reconstructions.split(5), originals.split(5), strict=True):
        scoring.update(decoded, real)
    network = transformers.Dinov2Model.from_pretrained(folder).eval()
    moments = []
    for images in (originals, reconstructions):
        rows = []
        for image in images:
            levels = ((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
            small = Image.fromarray(levels).resize((224, 224), Image.Resampling.BICUBIC)
            values = (np.asarray(small) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
            pixels = torch.from_numpy(values).permute(2, 0, 1)[None].float()
            with torch.no_grad():
                rows.append(network(pixel_values=pixels).last_hidden_state[0, 0].double().numpy())
        moments.append((np.mean(rows, axis=0), np.cov(np.array(rows), rowvar=False)))
    (mean, covariance), (other_mean, other) = moments
    expected = ((mean - other_mean) ** 2).sum() + np.trace(
        covariance + other - 2 * linalg.sqrtm(covariance @ other).real
    )
    assert expected > 1e-3
    # Pillow's resizing rounds its rows to 8 bits before its columns: a level here and there.
    assert scoring.compute() == {"frechet_dinov2_8x56": pytest.approx(expected, rel=0.02)}
    info = metric.info()
    assert (info.label, info.direction, info.reliable_images) == ("rFDD, dinov2_8x56", "lower", RELIABLE_IMAGES)
    assert metric.protocol()["rfdd"]["network"] == "dinov2_8x56"  # type: ignore[index]
    assert "sha256" in metric.protocol()["rfdd"]["weights"]  # type: ignore[index]


def test_rfdd_equals_the_distance_over_the_same_features(folder: Path) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    originals = pictures(24, 40)
    reconstructions = rounded(originals * 0.5)
    metric = RFDD(folder)
    scoring = Scoring([metric], Setting(model=None, device=torch.device("cpu")))
    for decoded, real in zip(reconstructions.split(7), originals.split(7), strict=True):
        scoring.update(decoded, real)
    with torch.no_grad():
        first, second = (metric.features(images).double().numpy() for images in (originals, reconstructions))
    covariance, other = (np.cov(rows, rowvar=False) for rows in (first, second))
    distance = ((first.mean(axis=0) - second.mean(axis=0)) ** 2).sum()
    distance += np.trace(covariance + other - 2 * linalg.sqrtm(covariance @ other).real)
    # Batches of another size add float32 numbers in another order within the network.
    assert scoring.compute() == {"frechet_dinov2_8x56": pytest.approx(distance, rel=1e-4)}


def test_published_networks_have_their_names() -> None:
    for width, registers, name in ((1024, False, "dinov2_vitl14"), (384, True, "dinov2_vits14_reg")):
        network = DINOv2.example()
        config = network.network.config
        config.hidden_size, config.patch_size = width, 14
        if registers:
            config.num_register_tokens = 4
        assert DINOv2Features(network=network).name == name


def test_rfdd_is_of_the_folder_that_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cached_folder", lambda name: None)
    options = {"perceptual": "none", "features": "none"}
    compared = named_metrics(["compare"], dinov2=str(folder), **options)
    assert [metric.name for metric in compared if isinstance(metric, RFDD)] == ["frechet_dinov2_8x56"]
    assert "rfdd" not in compared[0].absent
    assert [metric.name for metric in named_metrics(["rfdd"], dinov2=str(folder))] == ["frechet_dinov2_8x56"]
    with pytest.raises(UserError, match=r"--dinov2 .* has no effect with --metrics psnr; remove it, or add rfdd"):
        named_metrics(["psnr"], dinov2=str(folder))
    with pytest.raises(UserError, match="the weights of DINOv2 are missing"):
        named_metrics(["rfdd"], dinov2=str(folder / "nothing" / "here"))


def test_comparison_takes_dinov2_only_from_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def cached(name: str) -> Path | None:
        asked.append(name)
        return None if len(asked) == 1 else folder

    monkeypatch.setattr(module, "cached_folder", cached)
    without = named_metrics(["compare"], perceptual="none", features="none")
    assert not any(isinstance(metric, RFDD) for metric in without)
    scoring = Scoring(without, Setting(model=None, device=torch.device("cpu")))
    assert "--dinov2 FOLDER" in scoring.skipped["rfdd"]
    found = named_metrics(["compare"], perceptual="none", features="none")
    assert any(metric.name == "frechet_dinov2_8x56" for metric in found)
    assert set(asked) == {"facebook/dinov2-large"}
