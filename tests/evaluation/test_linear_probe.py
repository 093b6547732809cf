"""Accuracy of a linear classifier of latents."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm_ae.evaluation import evaluate
from ldm_ae.evaluation.metrics._labelled_latents import NUMBERS, pooled
from ldm_ae.evaluation.metrics.interface import Setting
from ldm_ae.evaluation.metrics.linear_probe import FOLDS, LinearProbe
from ldm_ae.evaluation.metrics.psnr import PSNR
from ldm_ae.evaluation.scoring import Scoring
from tests.evaluation.stubs import IdentityAutoencoder, Loader

if importlib.util.find_spec("sklearn") is None:
    pytest.skip("needs scikit-learn", allow_module_level=True)


@dataclass
class Labelled:
    pixel_values: Tensor
    keys: list[str]
    labels: Tensor


def measure(images: Tensor, labels: Tensor | None, batch_size: int = 16) -> Scoring:
    model = IdentityAutoencoder()
    scoring = Scoring([LinearProbe()], Setting(model=model, device=torch.device("cpu")))
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        found = None if labels is None else labels[start : start + batch_size]
        scoring.update(batch, batch, model.encode(batch), labels=found)
    return scoring


def noise(count: int) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5


def test_probe_finds_classes_that_differ_and_none_in_noise() -> None:
    labels = torch.arange(30) % 3
    shifted = noise(30) + 0.4 * torch.nn.functional.one_hot(labels, 3)[:, :, None, None]
    found = measure(shifted, labels).compute()
    assert found == {"linear_probe": 1.0, "linear_probe_chance": pytest.approx(1 / 3)}
    assert measure(noise(30), labels).compute()["linear_probe"] < 0.6


def test_accuracy_equals_a_loop_over_folds() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    labels = torch.arange(50) % 2
    images = noise(50) + 0.02 * labels[:, None, None, None]
    scoring = measure(images, labels)
    found = scoring.compute()
    x, y = pooled(images).double().numpy(), labels.numpy()
    accuracies = []
    for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(x, y):
        mean, std = x[train].mean(axis=0), x[train].std(axis=0)
        probe = LogisticRegression(max_iter=2000).fit((x[train] - mean) / std, y[train])
        accuracies.append(probe.score((x[test] - mean) / std, y[test]))
    assert found["linear_probe"] == pytest.approx(np.mean(accuracies))
    assert 0.5 <= found["linear_probe"] < 1.0
    assert scoring.details["linear_probe"] == {"classes": 2, "accuracies_of_folds": pytest.approx(accuracies)}
    assert measure(images, labels, batch_size=7).compute() == found


def test_images_without_a_label_and_small_classes_are_ignored() -> None:
    labels = torch.tensor([0] * 10 + [1] * 10 + [-1] * 5 + [2] * 4)
    scoring = measure(noise(29), labels, batch_size=5)
    assert scoring.compute()["linear_probe_chance"] == 0.5
    assert scoring.details["linear_probe"]["classes"] == 2


def test_probe_without_labels_or_classes_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = "Linear probe needs labels of the images, such as a folder for each class"
    assert measure(noise(4), None).skipped == {"linear_probe": needs}
    few = measure(noise(9), torch.tensor([0] * 5 + [1] * 4))
    assert few.compute() == {}
    assert few.skipped == {"linear_probe": "Linear probe needs at least 2 classes with 5 images each"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert measure(noise(4), None).skipped == {
        "linear_probe": "Linear probe needs scikit-learn: pip install 'ldm_ae[offline]'"
    }


@pytest.mark.parametrize(("shape", "side"), [((4, 32, 32), 4), ((128, 16, 16), 2), ((768, 16, 16), 1), ((3, 2, 8), 2)])
def test_latents_are_averaged_to_a_grid(shape: tuple[int, int, int], side: int) -> None:
    latents = torch.randn(2, *shape)
    features = pooled(latents)
    assert features.shape == (2, shape[0] * side**2)
    assert side == 1 or features.shape[1] <= NUMBERS
    expected = latents[:, :, : shape[1] // side, : shape[2] // side].mean(dim=(2, 3))
    torch.testing.assert_close(features.view(2, shape[0], side, side)[:, :, 0, 0], expected)


def test_evaluation_gives_metrics_the_labels_of_its_batches() -> None:
    labels = torch.arange(20) % 2
    images = (noise(20) * 0.1 + labels[:, None, None, None] - 0.5).clamp(-1, 1)
    batches = [
        Labelled(images[i : i + 8], [str(j) for j in range(i, min(i + 8, 20))], labels[i : i + 8])
        for i in range(0, 20, 8)
    ]
    result = evaluate(
        IdentityAutoencoder(), Loader(batches), source="", transform_description={}, model_name="", device="cpu",
        metrics=[PSNR(), LinearProbe()], pictures=0,
    )  # fmt: skip
    assert result.scores["linear_probe"] == 1.0
    assert result.infos["linear_probe_chance"].group == "latents"
