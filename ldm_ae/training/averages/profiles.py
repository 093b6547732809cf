"""The weighting profiles of power-function averages, and the combination of stored averages to one of another length.

Source: Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models (EDM2), arXiv 2312.02696,
section 3 and appendix C. An average at step t weights the parameters of step τ <= t by (γ + 1) τ^γ / t^(γ + 1). Its
*length* is sigma_rel, the standard deviation of that profile as a fraction of t:

    sigma_rel = sqrt((γ + 1) / (γ + 3)) / (γ + 2)        equation 123
    beta(t) = (1 - 1/t)^(γ + 1)                          equation 127, the decay at update t, counted from 1

For parameters that are constant between updates the recursion with beta(t) has exactly this profile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ldm_ae.training.config import LONGEST_AVERAGE, SHORTEST_AVERAGE

TOLERANCE = 0.1
"""Largest error of a combined profile, relative to the requested one in the L2 norm. Of parameters that fluctuate
independently from step to step, 0.1 raises the variance of the average by 1 %."""
_SCANNED = 400


def exponent(length: float) -> float:
    """Return γ of a length: the root above -1 of γ³ + 7γ² + (16 - σ⁻²)γ + 12 - σ⁻² (EDM2, equation 126)."""
    t = float(length) ** -2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def length_of(gamma: float) -> float:
    """Return sigma_rel of an exponent."""
    return float(np.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2))


def decay(length: float, update: int) -> float:
    """Return beta of update number `update`, counted from 1: the weight of the average before it."""
    return float((1.0 - 1.0 / update) ** (exponent(length) + 1.0))


class Profiles(NamedTuple):
    """Profiles (N,): each the weights of an average of one length at one step."""

    steps: np.ndarray
    gammas: np.ndarray

    @classmethod
    def of(cls, steps: Sequence[int], lengths: Sequence[float]) -> Profiles:
        """Return the profiles of every length at every step, in the order of the steps."""
        gammas = [exponent(length) for length in lengths]
        return cls(np.repeat(np.asarray(steps, np.float64), len(gammas)), np.tile(gammas, len(steps)))

    def inner(self, other: Profiles) -> np.ndarray:
        """Return the inner products (N, M) of all pairs of profiles (EDM2, equation 151 and algorithm 3)."""
        ours, theirs = self.steps[:, None], other.steps[None, :]
        gamma, others = self.gammas[:, None], other.gammas[None, :]
        power = np.where(ours < theirs, others, -gamma)
        ratio = (ours / theirs) ** power
        products: np.ndarray = (gamma + 1) * (others + 1) * ratio / ((gamma + others + 1) * np.maximum(ours, theirs))
        return products


class Combination(NamedTuple):
    """The factors of stored averages in a combined one."""

    factors: np.ndarray
    """(steps, lengths); their sum is 1."""
    error: float
    """Distance of the combined profile from the requested one, relative to the latter's norm."""


def combine(steps: Sequence[int], lengths: Sequence[float], step: int, wanted: Sequence[float]) -> list[Combination]:
    """Return the factors whose combinations of the stored profiles are nearest to others (EDM2, algorithm 3).

    Args:
        steps: The steps at which averages were stored, all different.
        lengths: The stored lengths, all different.
        step: The step of the requested averages.
        wanted: Their lengths.
    """
    stored, others = Profiles.of(steps, lengths), Profiles.of([step], wanted)
    products, to_others = stored.inner(stored), stored.inner(others)
    factors = np.linalg.solve(products, to_others)
    factors = factors / factors.sum(axis=0)
    norms = others.inner(others).diagonal()
    squared = ((products @ factors - 2 * to_others) * factors).sum(axis=0) / norms + 1
    errors = np.sqrt(np.maximum(squared, 0.0))
    shape = (len(steps), len(lengths))
    return [Combination(column.reshape(shape), float(error)) for column, error in zip(factors.T, errors, strict=True)]


def reachable(steps: Sequence[int], lengths: Sequence[float], step: int) -> tuple[float, float]:
    """Return the shortest and the longest length around the stored ones whose error is at most `TOLERANCE`."""
    scanned = np.geomspace(SHORTEST_AVERAGE, LONGEST_AVERAGE, _SCANNED)
    good = [found.error <= TOLERANCE for found in combine(steps, lengths, step, scanned.tolist())]
    first = last = int(np.abs(np.log(scanned / lengths[0])).argmin())
    while first > 0 and good[first - 1]:
        first -= 1
    while last < len(scanned) - 1 and good[last + 1]:
        last += 1
    return float(scanned[first]), float(scanned[last])
