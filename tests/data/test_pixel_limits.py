"""Limits of channels that are measured as quantiles over a source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldm_ae.core.errors import UserError
from ldm_ae.data import open_source
from ldm_ae.data.pixel_limits import measure_limits
from ldm_ae.images.pixels import PixelSpec


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("bands")
    draw = np.random.default_rng(0)
    for number in range(4):
        bands = np.stack([draw.uniform(100, 1100, (40, 40)), draw.uniform(-500, 3500, (40, 40))]).astype(np.int16)
        bands[:, :5] = -9999
        np.save(place / f"{number}.npy", bands)
    np.save(place / "other.npy", np.zeros((3, 4, 5), np.int16))
    return place


def test_quantiles_of_each_channel_become_its_limits(folder: Path) -> None:
    described = {"channels": 2, "bits": 16, "names": ["a", "b"], "missing": -9999, "quantiles": [0.01, 0.99]}
    found = measure_limits(open_source(folder), described)
    assert found.low == pytest.approx((110, -460), abs=40)
    assert found.high == pytest.approx((1090, 3460), abs=40)
    assert (found.names, found.clip, found.dtype) == (("a", "b"), True, np.int16)
    del described["missing"]
    assert measure_limits(open_source(folder), described).low == (-9999, -9999)


def test_missing_samples_and_bad_images_are_left_out(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for number in range(3):
        bands = np.stack([draw.uniform(100, 1100, (64, 64)), draw.uniform(-5, 35, (64, 64))]).astype(np.float32)
        bands[:, :5] = np.nan
        np.save(tmp_path / f"{number}.npy", bands)
    np.save(tmp_path / "other.npy", np.zeros((3, 4, 5), np.float32))
    described = {"channels": 2, "bits": 0, "missing": "nan", "quantiles": [0.01, 0.99]}
    found = measure_limits(open_source(tmp_path), described)
    assert found.low == pytest.approx((110, -4.6), abs=3)
    assert found.high == pytest.approx((1090, 34.6), abs=3)
    assert PixelSpec.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"quantiles": [0.9, 0.1]}, "must be two increasing numbers in \\[0, 1\\], got \\[0.9, 0.1\\]"),
        ({"quantiles": 0.5}, "must be two increasing numbers"),
        ({"low": 3}, "low and quantiles exclude each other"),
        ({"channels": 7}, "no image can be measured; the first: 0.npy: the file has 2 channels"),
        ({"quantiles": [0.0, 0.001]}, "channel 0 is -9999 at both quantiles"),
    ],
)
def test_impossible_measurements_are_refused(folder: Path, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        measure_limits(open_source(folder), {"channels": 2, "bits": 16, "quantiles": [0.01, 0.99], **changed})


def test_a_spec_with_quantiles_is_refused_where_nothing_measures_them() -> None:
    with pytest.raises(UserError, match="quantiles are measured by ldm-ae train; give low and high here"):
        PixelSpec.from_json({"channels": 2, "quantiles": [0, 1]})
