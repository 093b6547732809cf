"""Scores of features whose classes are known."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from ldm_ae.core.errors import UserError
from ldm_ae.data import open_source
from ldm_ae.models import KLAutoencoder
from ldm_ae.representation.encoded import in_batches, read_images
from ldm_ae.representation.usefulness import (
    ClassGaussians,
    classification_accuracy_score,
    classifier_accuracy,
    clusterability,
    knn_accuracy,
    label_efficiency,
)
from tests.evaluation.stubs import IdentityAutoencoder

needs_sklearn = pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="needs scikit-learn")
LABELS = np.arange(120) % 3


def features(distance: float, seed: int = 0) -> np.ndarray:
    """Noise of deviation 1 in four numbers, one of them moved by the class."""
    found = np.random.default_rng(seed).normal(size=(120, 4))
    found[:, 0] += distance * LABELS
    return found


@pytest.mark.slow
@needs_sklearn
def test_neighbours_and_clusters_find_distant_classes_and_none_in_noise() -> None:
    assert knn_accuracy(features(20), LABELS) == 1.0
    assert clusterability(features(20), LABELS) == pytest.approx((1.0, 1.0))
    assert knn_accuracy(features(0), LABELS) == pytest.approx(1 / 3, abs=0.15)  # 120 images: 3 deviations
    found = clusterability(features(0), LABELS)
    assert found.nmi < 0.1
    assert found.ari == pytest.approx(0.0, abs=0.06)


@needs_sklearn
def test_more_labels_give_a_better_classifier() -> None:
    few, many = label_efficiency(features(1), LABELS, features(1, seed=1), LABELS, numbers=(6, 10_000))
    assert (few.labels, many.labels) == (6, 120)
    assert few.accuracy + 0.05 < many.accuracy
    assert many.accuracy > 0.5
    assert few.deviation > many.deviation == 0.0
    with pytest.raises(UserError, match="a label for each of 3 classes, got 2 labels"):
        label_efficiency(features(1), LABELS, features(1), LABELS, numbers=(2,))


def images(labels: torch.Tensor, seed: int) -> torch.Tensor:
    """Images (B, 3, 8, 8) with a bright left or right half."""
    noise = 0.2 * torch.randn(len(labels), 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    bright = torch.zeros(2, 8)
    bright[0, :4] = bright[1, 4:] = 0.5
    return (noise + bright[labels][:, None, None, :]).clamp(-1, 1)


@pytest.mark.slow
def test_classification_accuracy_score_of_good_and_confused_generators() -> None:
    labels = torch.arange(64) % 2
    real = images(labels, 0)
    assert classifier_accuracy(images(labels, 1), labels, real, labels, steps=30) == 1.0
    score = classification_accuracy_score(lambda y: images(y, 2), labels, real, labels, steps=30)
    assert score == 1.0
    assert classification_accuracy_score(lambda y: images(1 - y, 2), labels, real, labels, steps=30) == 0.0
    state = torch.get_rng_state()
    classifier_accuracy(images(labels, 1), labels, real, labels, steps=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_class_gaussians_have_the_moments_of_their_class() -> None:
    labels = torch.arange(400) % 2
    training = images(labels, 3)
    generator = ClassGaussians(IdentityAutoencoder(), training, labels)
    drawn = generator(torch.ones(300, dtype=torch.int64))
    of_class = training[labels == 1]
    # 300 draws of pixels of deviation 0.2: 0.012, 5 of them for the largest of 192.
    torch.testing.assert_close(drawn.mean(dim=0), of_class.mean(dim=0), atol=0.06, rtol=0)
    torch.testing.assert_close(drawn.std(), of_class.std(), atol=0.02, rtol=0)
    with pytest.raises(UserError, match="class 1 has fewer"):
        ClassGaussians(IdentityAutoencoder(), training[:3], torch.tensor([0, 0, 1]))


@needs_sklearn
def test_images_are_read_at_a_size_and_split_by_pixels() -> None:
    model = KLAutoencoder(block_out_channels=(4, 4), layers_per_block=1, norm_num_groups=2).eval()
    assert read_images(model, open_source("digits:test"), limit=3, size=24).pixel_values.shape == (3, 3, 24, 24)
    assert [len(part) for part in in_batches(torch.empty(3, 1, 1024, 1024))] == [1, 1, 1]
    assert [len(part) for part in in_batches(torch.empty(300, 1, 2, 2))] == [256, 44]
