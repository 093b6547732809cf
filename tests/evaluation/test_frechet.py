from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from ldm_ae.core.errors import UserError
from ldm_ae.evaluation import FeatureStatistics, frechet_distance


def statistics(features: torch.Tensor, batch_size: int = 100) -> FeatureStatistics:
    result = FeatureStatistics(features.shape[1])
    for batch in features.split(batch_size):
        result.update(batch)
    return result


def gaussian(mean: list[float], variances: list[float]) -> FeatureStatistics:
    """Statistics that are exactly these: the points mean ± sqrt(n - 1 / 2 · variance) along each axis."""
    dim = len(mean)
    points = torch.zeros(2 * dim, dim, dtype=torch.float64)
    for i, variance in enumerate(variances):
        points[2 * i, i] = (variance * (2 * dim - 1) / 2) ** 0.5
        points[2 * i + 1, i] = -points[2 * i, i]
    return statistics(points + torch.tensor(mean, dtype=torch.float64))


def test_frechet_distance_of_known_gaussians() -> None:
    a = gaussian([1.0, 0.0, 2.0], [1.0, 4.0, 0.0])
    b = gaussian([0.0, 2.0, 2.0], [9.0, 4.0, 25.0])
    # |m|² = 1 + 4; diagonal covariances: sum of (sigma_a - sigma_b)² = 4 + 0 + 25
    assert frechet_distance(a, b) == pytest.approx(34.0, rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(34.0, rel=1e-10)


def test_frechet_distance_equals_the_matrix_square_root_formula() -> None:
    rng = torch.Generator().manual_seed(0)
    mix = torch.randn(8, 8, generator=rng, dtype=torch.float64)
    x = torch.randn(500, 8, generator=rng, dtype=torch.float64)
    y = torch.randn(400, 8, generator=rng, dtype=torch.float64) @ mix + 1.0
    c, d = np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False)
    root = scipy.linalg.sqrtm(c @ d).real
    expected = float((x.mean(0) - y.mean(0)).square().sum()) + float(np.trace(c + d - 2 * root))
    assert frechet_distance(statistics(x), statistics(y)) == pytest.approx(expected, rel=1e-9)  # float64 all along


def test_frechet_distance_supports_fewer_images_than_features() -> None:
    x = torch.randn(10, 60, dtype=torch.float64) * 100.0
    same = frechet_distance(statistics(x), statistics(x))
    # Rounding is 1e-16 of a trace of 6e5; eigenvalues of the product would leave 1e-8 of it.
    assert same <= 1e-7
    assert frechet_distance(statistics(x), statistics(x + 3.0)) == pytest.approx(60 * 9.0, rel=1e-9)


def test_frechet_statistics_do_not_depend_on_batches_or_merging() -> None:
    x = torch.randn(101, 5, dtype=torch.float64) * 3.0 + 50.0
    whole, parts, few = statistics(x, 101), statistics(x[:40], 7), statistics(x[:4], 2)
    parts.merge(statistics(x[40:], 13))
    parts.merge(FeatureStatistics(5))
    np.testing.assert_allclose(few.covariance.numpy(), np.cov(x[:4].numpy(), rowvar=False), rtol=1e-11, atol=1e-12)
    few.merge(statistics(x[4:7], 3))  # now they are more than the features
    few.merge(statistics(x[7:], 50))
    few.update(x[:0])
    for each in (whole, parts, few):
        assert each.count == 101
        np.testing.assert_allclose(each.mean.numpy(), x.mean(0).numpy(), rtol=1e-13)
        np.testing.assert_allclose(each.covariance.numpy(), np.cov(x.numpy(), rowvar=False), rtol=1e-11, atol=1e-12)


def test_factor_times_itself_is_the_covariance() -> None:
    for images in (4, 30):  # fewer and more than features
        found = statistics(torch.randn(images, 6, dtype=torch.float64) + 3.0, 2)
        assert found.factor().shape == (min(images, 6), 6)
        torch.testing.assert_close(found.factor().T @ found.factor(), found.covariance)


def test_frechet_distance_refuses_one_image() -> None:
    with pytest.raises(UserError, match="at least 2 images, got 1"):
        frechet_distance(statistics(torch.zeros(1, 3)), statistics(torch.zeros(2, 3)))
