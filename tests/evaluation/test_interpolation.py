"""The Fréchet distance of decoded midpoints of neighbouring latents."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm_ae.evaluation.metrics import interpolation as module
from ldm_ae.evaluation.metrics.frechet import FeatureStatistics, Frechet, frechet_distance
from ldm_ae.evaluation.metrics.interface import Metric, Setting
from ldm_ae.evaluation.metrics.interpolation import Interpolation, halfway, nearest_neighbours
from ldm_ae.evaluation.scoring import Scoring
from ldm_ae.images.uint8 import rounded
from tests.evaluation.stubs import IdentityAutoencoder, PixelFeatures, pictures

KEY = "interpolation_frechet_colour"


def measure(metrics: list[Metric], batches: list[Tensor]) -> Scoring:
    model = IdentityAutoencoder()
    scoring = Scoring(metrics, Setting(model=model, device=torch.device("cpu")))
    for batch in batches:
        scoring.update(batch, batch, model.encode(batch))
    return scoring


def test_halfway_equals_the_formula_of_slerp() -> None:
    a, b = torch.randn(5, 2, 3, 3), torch.randn(5, 2, 3, 3)
    x, y = a.double().flatten(1), b.double().flatten(1)
    theta = torch.acos((x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1)))[:, None]
    expected = (torch.sin(theta / 2) * (x + y) / torch.sin(theta)).float().view_as(a)
    torch.testing.assert_close(halfway(a, b), expected)
    torch.testing.assert_close(halfway(a, 2 * a), 1.5 * a)
    torch.testing.assert_close(halfway(a, -3 * a), -a)


@pytest.mark.parametrize("count", [2, 7, 20])
def test_neighbours_are_the_nearest_other_vectors(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 6)
    vectors = torch.randn(count, 4)
    rows, similarities = nearest_neighbours(vectors.half())
    matrix = np.array([[float(torch.cosine_similarity(a, b, dim=0)) for a in vectors] for b in vectors])
    np.fill_diagonal(matrix, -2)
    assert rows.tolist() == matrix.argmax(axis=1).tolist()
    np.testing.assert_allclose(similarities, matrix.max(axis=1), atol=2e-3)  # float16


def test_distance_equals_a_direct_computation() -> None:
    images = pictures(6)
    scoring = measure([Interpolation(PixelFeatures())], [*images.split(4)])
    latents = images.half()
    rows, _ = nearest_neighbours(latents.flatten(1))
    originals, middle = FeatureStatistics(6), FeatureStatistics(6)
    originals.update(PixelFeatures()(images))
    middle.update(PixelFeatures()(rounded(halfway(latents.float(), latents[rows].float()))))
    assert scoring.compute()[KEY] == pytest.approx(frechet_distance(originals, middle), rel=1e-9)
    assert scoring.details[KEY]["interpolations"] == 6
    other = measure([Interpolation(PixelFeatures())], [*images.split(1)])
    assert other.compute()[KEY] == pytest.approx(scoring.compute()[KEY], rel=1e-9)


def test_originals_are_shared_with_the_frechet_distance_of_the_evaluation() -> None:
    calls = []

    class Counted(PixelFeatures):
        def __call__(self, pixel_values: Tensor) -> Tensor:
            calls.append(len(pixel_values))
            return super().__call__(pixel_values)

    frechet = Frechet(Counted())
    shared = measure([frechet, Interpolation(originals=frechet)], [pictures(6)])
    found = shared.compute()
    assert sum(calls) == 3 * 6  # originals, reconstructions, interpolations
    assert found[KEY] == measure([Interpolation(PixelFeatures())], [pictures(6)]).compute()[KEY]
    assert found["frechet_colour"] == pytest.approx(0.0, abs=1e-12)


def test_only_the_first_images_are_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IMAGES", 5)
    scoring = measure([Interpolation(PixelFeatures())], [*pictures(8).split(4)])
    assert math.isfinite(scoring.compute()[KEY])
    assert scoring.details[KEY]["interpolations"] == 5


def test_images_are_interpolated_with_those_of_their_size() -> None:
    batches = [pictures(3, 32), pictures(2, 48), pictures(1, 40)]
    scoring = measure([Interpolation(PixelFeatures())], batches)
    assert scoring.compute()[KEY] > 0
    assert scoring.details[KEY]["interpolations"] == 5


def test_few_images_and_large_latents_are_skipped() -> None:
    one = measure([Interpolation(PixelFeatures())], [pictures(1)])
    assert one.compute() == {}
    assert one.skipped == {KEY: "a Fréchet distance needs at least 2 images, got 0"}

    class Huge(IdentityAutoencoder):
        def scale(self, latents: Tensor) -> Tensor:
            return latents * 1e6

    scoring = Scoring([Interpolation(PixelFeatures())], Setting(model=Huge(), device=torch.device("cpu")))
    scoring.update(pictures(2), pictures(2), Huge().encode(pictures(2)))
    assert "float16's range" in scoring.skipped[KEY]
