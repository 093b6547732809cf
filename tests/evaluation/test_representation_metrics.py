"""Metrics of what latents represent give the numbers of the functions, or are skipped with a reason."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from torch import Tensor

from ldm_ae.evaluation.metrics import METRICS
from ldm_ae.evaluation.metrics._labelled_latents import pooled
from ldm_ae.evaluation.metrics.interface import Setting
from ldm_ae.evaluation.scoring import Scoring
from ldm_ae.models import Autoencoder
from ldm_ae.representation.bound import bits_per_dimension, elbo, iwae
from ldm_ae.representation.information import collapse, information
from ldm_ae.representation.usefulness import clusterability, knn_accuracy
from tests.evaluation.stubs import IdentityAutoencoder
from tests.representation.linear_gaussian import LinearGaussian

needs_sklearn = pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="needs scikit-learn")


def measure(
    names: list[str], model: Autoencoder, images: Tensor, labels: Tensor | None = None, batch_size: int = 16
) -> Scoring:
    scoring = Scoring([METRICS[name]() for name in names], Setting(model=model, device=torch.device("cpu")))
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        scoring.update(
            images[rows], images[rows], model.encode(images[rows]), labels=None if labels is None else labels[rows]
        )
    return scoring  # fmt: skip


def eight_bit(images: Tensor) -> Tensor:
    return ((images.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def test_bounds_are_means_over_images_in_nats_and_bits() -> None:
    model = LinearGaussian()
    images = eight_bit(model.images(20))
    scores = measure(["elbo", "iwae"], model, images).compute()
    nats = {"elbo": elbo(model, images, samples=8).nats.mean(), "iwae": iwae(model, images, k=100).mean()}
    for name, value in nats.items():
        assert scores[name] == pytest.approx(float(value), abs=1e-4)
        bits = bits_per_dimension(model, value, images)
        assert scores[f"{name}_bits_per_dimension"] == pytest.approx(float(bits), abs=1e-4)
    assert measure(["elbo", "iwae"], model, images, batch_size=7).compute() == pytest.approx(scores)


def test_information_of_moments_is_that_of_the_functions() -> None:
    model = LinearGaussian(shift=50.0)
    images = eight_bit(model.images(30))
    moments = model.encode(images).moments
    means, log_variances = (part.flatten(1) for part in moments.chunk(2, dim=1))
    scoring = measure(["active_units", "mutual_information"], model, images)
    scores = scoring.compute()
    expected = information(means, log_variances)
    assert scores["mutual_information"] == pytest.approx(expected.mutual_information)
    assert scores["mutual_information_limit"] == pytest.approx(math.log(30))
    assert scores["aggregate_kl"] == pytest.approx(expected.aggregate_kl)
    assert (scores["active_units"], scores["active_units_fraction"]) == (2, 1.0)
    assert scoring.details["active_units"] == {"report": " ".join(collapse(means, log_variances).lines)}


@pytest.mark.slow
@needs_sklearn
def test_usefulness_of_pooled_latents_is_that_of_the_functions() -> None:
    labels = torch.arange(60) % 3
    noise = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5
    images = eight_bit(noise + 0.05 * labels[:, None, None, None])
    scoring = measure(["knn", "clusters", "label_efficiency"], IdentityAutoencoder(), images, labels)
    scores = scoring.compute()
    features = pooled(images).numpy()
    agreement = clusterability(features, labels.numpy())
    assert scores["knn"] == knn_accuracy(features, labels.numpy())
    assert (scores["clusters_nmi"], scores["clusters_ari"]) == pytest.approx(agreement)
    assert 0 <= scores["label_efficiency_10"] <= 1
    assert "label_efficiency_100" not in scores  # 48 training images
    assert set(scoring.details["label_efficiency"]["standard_deviations"]) == {"10"}


def test_models_and_images_without_a_meaning_are_skipped_with_a_reason() -> None:
    images = torch.zeros(4, 3, 8, 8)
    names = ["elbo", "iwae", "active_units", "mutual_information", "knn", "clusters", "label_efficiency"]
    scoring = measure(names, IdentityAutoencoder(), images)
    assert scoring.compute() == {}
    assert scoring.skipped["elbo"].startswith("the model has no likelihood")
    assert scoring.skipped["iwae"].startswith("the model has no likelihood")
    for name, label in (("active_units", "Active units"), ("mutual_information", "Mutual information")):
        assert scoring.skipped[name] == f"{label} needs Gaussian posteriors, which the model does not have"
    if importlib.util.find_spec("sklearn") is not None:
        assert scoring.skipped["knn"] == "k-NN needs labels of the images, such as a folder for each class"
    one = measure(["active_units", "mutual_information"], LinearGaussian(), torch.zeros(1, 1, 2, 2))
    assert one.compute() == {}
    assert one.skipped == {
        name: f"{label} needs at least 2 images"
        for name, label in (("active_units", "Active units"), ("mutual_information", "Mutual information"))
    }
