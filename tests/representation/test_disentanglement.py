"""Scores of disentanglement on codes for which they are known."""

from __future__ import annotations

import importlib.util
from itertools import product

import numpy as np
import pytest

from ldm_ae.core.errors import UserError
from ldm_ae.representation.disentanglement import (
    SCORES,
    all_scores,
    dci,
    modularity,
    mutual_information_gap,
    sap,
)
from ldm_ae.representation.disentanglement.dci import concentrations

needs_sklearn = pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="needs scikit-learn")

GRID = np.array(list(product(range(4), range(4))) * 40)
"""Two factors of four values each, every combination 40 times."""
ROTATION = np.array([[1.0, -1.0], [1.0, 1.0]]) / np.sqrt(2)


@pytest.mark.slow
@needs_sklearn
@pytest.mark.parametrize("order", [[0, 1], [1, 0]], ids=["equal", "permuted and scaled"])
def test_a_latent_for_each_factor_has_every_score_of_one(order: list[int]) -> None:
    codes = 3.0 * GRID[:, order] - 5.0
    expected = dict.fromkeys(SCORES, 1.0) | {"sap": 1 - 1 / 4}  # the other latent guesses one of four values
    # Balanced accuracy of a latent that knows nothing differs from 1/4 by chance: 320 images, 0.024.
    assert all_scores(codes, GRID) == pytest.approx(expected, abs=0.08)
    assert mutual_information_gap(codes, GRID) == pytest.approx(1.0, abs=1e-12)
    assert modularity(codes, GRID) == pytest.approx(1.0, abs=1e-12)


@needs_sklearn
def test_rotation_by_45_degrees_has_the_scores_of_chance() -> None:
    scores = all_scores(GRID @ ROTATION, GRID)
    assert {key: scores[key] for key in ("mig", "modularity")} == pytest.approx({"mig": 0, "modularity": 0}, abs=1e-9)
    # By symmetry both latents serve both factors alike. Sampling: 800 votes, 2,000 points, 10 trees, 320 images.
    chance = {"beta_vae": 0.5, "factor_vae": 0.5, "dci_disentanglement": 0, "dci_completeness": 0, "sap": 0}
    assert {key: scores[key] for key in chance} == pytest.approx(chance, abs=0.1)
    assert scores["dci_informativeness"] == 1.0  # both latents together still determine each factor


@needs_sklearn
def test_random_code_has_the_lower_bounds() -> None:
    codes = np.random.default_rng(1).normal(size=(len(GRID), 6))
    scores = all_scores(codes, GRID)
    assert scores["beta_vae"] == pytest.approx(0.5, abs=0.1)
    assert scores["factor_vae"] == pytest.approx(0.5, abs=0.15)  # the majority among six latents is above chance
    assert scores["dci_informativeness"] == pytest.approx(0.25, abs=0.12)
    assert scores["mig"] < 0.03
    assert scores["sap"] < 0.05
    assert scores["dci_disentanglement"] < 0.1
    assert scores["dci_completeness"] < 0.1


@needs_sklearn
def test_two_latents_for_a_factor_lose_completeness_and_gaps_but_not_modularity() -> None:
    codes = np.concatenate([GRID, GRID[:, :1] + 1e-3 * np.random.default_rng(0).normal(size=(len(GRID), 1))], axis=1)
    assert modularity(codes, GRID) > 0.99
    assert mutual_information_gap(codes, GRID) == pytest.approx(0.5, abs=0.01)
    assert sap(codes, GRID) == pytest.approx((0 + 0.75) / 2, abs=0.05)


def test_dci_concentrations_are_those_of_the_entropy() -> None:
    assert concentrations(np.eye(3)) == pytest.approx((1.0, 1.0))
    assert concentrations(np.ones((4, 3))) == pytest.approx((0.0, 0.0))
    # Two latents for factor 0, one for factor 1: every latent serves one factor, factor 0 has one bit of two latents.
    importance = np.array([[0.5, 0.0], [0.5, 0.0], [0.0, 1.0]])
    assert concentrations(importance) == pytest.approx((1.0, (1 - np.log(2) / np.log(3) + 1) / 2))
    assert concentrations(np.zeros((2, 2))) == (0.0, 0.0)


@needs_sklearn
def test_dci_is_a_function_of_the_seed() -> None:
    codes = np.random.default_rng(2).normal(size=(len(GRID), 2))
    assert dci(codes, GRID, seed=3) == dci(codes, GRID, seed=3)


@pytest.mark.parametrize(
    ("codes", "factors", "message"),
    [
        (np.zeros((3, 2)), np.zeros((4, 2), int), "of the same N > 0"),
        (np.full((4, 2), np.nan), np.zeros((4, 2), int), "codes must be finite"),
        (np.zeros((4, 2)), np.zeros((4, 2)), "factors must be integers"),
        (np.zeros((4, 2)), np.stack([np.arange(4), np.zeros(4, int)], 1), "at least 2 factors with different .* got 1"),
    ],
)  # fmt: skip
def test_invalid_arrays_are_rejected(codes: np.ndarray, factors: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        mutual_information_gap(codes, factors)


def test_missing_scikit_learn_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^SAP needs scikit-learn: pip install 'ldm_ae\[offline\]'$"):
        sap(GRID.astype(float), GRID)
