"""Scores of single images, and their AUROC, where the value is known."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_ae.core.errors import UserError
from ldm_ae.evaluation.metrics.interface import CannotScoreError, Setting
from ldm_ae.models import Autoencoder, VQAutoencoder
from ldm_ae.outliers import auroc
from ldm_ae.outliers.encoded import Encoded
from ldm_ae.outliers.scores import SCORES, OutlierScore
from ldm_ae.outliers.scores.complexity import lossless_bits
from ldm_ae.outliers.scores.latents import mahalanobis, pooled, shrunk_covariance
from ldm_ae.priors import GatedPixelCNN, SavedPrior
from ldm_ae.quantizers import VQ
from tests.evaluation.stubs import IdentityAutoencoder
from tests.representation.linear_gaussian import LinearGaussian


def encoded(model: Autoencoder, images: torch.Tensor, prior: SavedPrior | None = None) -> Encoded:
    setting = Setting(model=model, device=torch.device("cpu"), prior=prior)
    with torch.no_grad():
        posterior = model.encode(images)
        return Encoded(setting, images, torch.arange(len(images)), posterior, model.decode(posterior.mode()))


def prepared(name: str, images: Encoded) -> OutlierScore:
    score = SCORES[name]()
    score.prepare(images.setting)
    return score


def test_auroc_counts_pairs_and_half_of_the_ties() -> None:
    assert auroc([0, 1, 2], [1, 3]) == pytest.approx((1.5 + 3) / 6)
    assert auroc([0, 1], [2, 3]) == 1.0
    assert auroc([2, 3], [0, 1]) == 0.0
    assert auroc([5, 5], [5, 5, 5]) == 0.5
    with pytest.raises(UserError, match="got 0 and 1"):
        auroc([], [1])
    with pytest.raises(UserError, match="finite"):
        auroc([1.0], [math.nan])


def test_mahalanobis_distance_counts_deviations_along_each_axis() -> None:
    covariance = torch.tensor([[4.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    rows = torch.tensor([[3.0, 1.0], [1.0, 4.0]], dtype=torch.float64)
    found = mahalanobis(rows, torch.tensor([1.0, 1.0], dtype=torch.float64), covariance)
    assert found.tolist() == pytest.approx([1.0, 3.0])
    turn = torch.linalg.qr(torch.randn(2, 2, dtype=torch.float64))[0]
    turned = mahalanobis(rows @ turn.T, turn @ torch.ones(2, dtype=torch.float64), turn @ covariance @ turn.T)
    assert turned.tolist() == pytest.approx([1.0, 3.0])


@pytest.mark.parametrize("shape", [(8, 20), (200, 5)])
def test_shrunk_covariance_is_that_of_scikit_learn(shape: tuple[int, int]) -> None:
    covariance = pytest.importorskip("sklearn.covariance")
    rows = np.random.default_rng(0).normal(size=shape) * np.arange(1, shape[1] + 1)
    expected = covariance.LedoitWolf().fit(rows).covariance_
    assert shrunk_covariance(torch.from_numpy(rows)).numpy() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_latents_are_pooled_to_means_and_logarithms_of_deviations() -> None:
    latents = torch.tensor([[[[1.0, 3.0]], [[5.0, 5.0]]]])
    assert pooled(latents)[0].tolist() == pytest.approx([2.0, 5.0, math.log(1.0), math.log(1e-6)])
    assert pooled(latents[:, :, :, :1])[0].tolist() == [1.0, 5.0]


def test_latents_refuse_a_reference_without_spread() -> None:
    score = SCORES["latents"]()
    with pytest.raises(CannotScoreError, match="too few different latents"):
        score.fit(torch.ones(4, 2, dtype=torch.float64))


def test_complexity_of_an_image_is_its_smallest_file() -> None:
    noise = torch.randint(0, 256, (1, 32, 32), generator=torch.Generator().manual_seed(0)).float() / 127.5 - 1
    constant, random = lossless_bits(torch.stack([torch.full((1, 32, 32), 0.5), noise])).tolist()
    assert constant < 8 * 80  # headers only
    assert random > 8 * 32 * 32  # which nothing makes smaller
    binary = lossless_bits(noise[None], binary=True)[0]
    assert 32 * 32 < float(binary) < 8 * 300  # a bit a pixel and headers
    levels = ((noise[0] + 1) * 127.5).round().byte().numpy()
    sizes = []
    for options in ({"format": "PNG", "optimize": True}, {"format": "WEBP", "lossless": True}):
        buffer = io.BytesIO()
        Image.fromarray(levels).save(buffer, **options)
        sizes.append(8 * len(buffer.getvalue()))
    assert random == min(sizes)


def test_scores_of_a_known_density() -> None:
    """Of a linear-Gaussian model -log p(x) is known up to the gap; noise is less likely than its own images."""
    model = LinearGaussian()
    normal, strange = model.images(64), torch.randn(64, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    batches = [encoded(model, images.clamp(-1.4, 1.4)) for images in (normal, strange)]
    own, other = (prepared("elbo", batch).measure(batch) for batch in batches)
    exact = -model.log_prob(batches[0].pixel_values).double() / (4 * math.log(2)) - math.log2(2 / 255)
    gap = model.approximation_gap() / (4 * math.log(2))
    assert float((own - exact).mean()) == pytest.approx(gap, abs=0.1)  # 8 draws of 64 images
    assert auroc(own, other) > 0.7
    assert torch.equal(prepared("complexity", batches[0]).measure(batches[0]),
                       own - lossless_bits(batches[0].pixel_values) / 4)  # fmt: skip
    typicality = prepared("typicality", batches[0])
    typicality.fit(torch.tensor([1.0, 3.0]))
    assert typicality.score(torch.tensor([2.0, 5.0, 0.0])).tolist() == [0.0, 3.0, 2.0]


def test_codes_are_scored_in_bits_per_pixel_under_the_prior() -> None:
    torch.manual_seed(0)
    model = VQAutoencoder(quantizer=VQ(8, 3), block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
                          mid_block_add_attention=False).eval()  # fmt: skip
    prior = GatedPixelCNN(codebook_size=8, shape=(4, 4), classes=0, width=8, depth=1, dropout=0.0).eval()
    images = encoded(model, torch.rand(2, 3, 8, 8) * 2 - 1, SavedPrior(prior, "hash"))
    found = prepared("codes", images).measure(images)
    assert found.tolist() == pytest.approx((prior.bits(model.encode(images.pixel_values).indices) / 64).tolist())
    for name, why in (("elbo", "codes scores them"), ("complexity", "that of codes, not of the pixels")):
        with pytest.raises(CannotScoreError, match=why):
            prepared(name, images)


def test_reconstruction_error_is_a_percentage_of_the_range() -> None:
    images = encoded(IdentityAutoencoder(offset=0.1), torch.zeros(2, 3, 4, 4))
    assert prepared("reconstruction", images).measure(images).tolist() == pytest.approx([5.0, 5.0])
    with pytest.raises(CannotScoreError, match="the model has no likelihood"):
        prepared("typicality", images)
    with pytest.raises(CannotScoreError, match="the model has no codes"):
        prepared("codes", images)


@pytest.mark.parametrize("name", SCORES.names())
def test_every_score_explains_itself(name: str) -> None:
    score = SCORES[name]
    assert score.name == name
    assert score.label
    assert score.explanation.endswith(".")
