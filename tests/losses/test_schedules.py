"""Schedules of weights."""

from __future__ import annotations

import pytest
import torch

from ldm_ae.core.errors import UserError
from ldm_ae.losses import Objective, ObjectiveConfig
from ldm_ae.losses.schedules import WeightSchedule


def test_weight_rises_once_or_in_cycles() -> None:
    once, cycles = WeightSchedule(warmup_steps=4), WeightSchedule(warmup_steps=2, cycle_steps=4)
    assert [once.factor(step) for step in (0, 1, 4, 5, 100)] == [0, 0.25, 1, 1, 1]
    assert [cycles.factor(step) for step in range(9)] == [0, 0.5, 1, 1, 0, 0.5, 1, 1, 0]


def test_schedule_multiplies_the_weight_of_its_term() -> None:
    config = ObjectiveConfig(
        reduction="ldm", regularization_weights={"kl": 2.0, "other": 3.0},
        regularization_schedules={"kl": WeightSchedule(warmup_steps=4)},
    )  # fmt: skip
    terms, latents = {"kl": torch.ones(2), "other": torch.ones(2)}, torch.zeros(2, 1, 1, 1)
    found = Objective(config).regularization(terms, latents, config.scheduled_at(1))
    assert float(found) == 2.0 * 0.25 + 3.0
    with pytest.raises(UserError, match="regularization_schedules: 'lk' has no weight"):
        ObjectiveConfig(regularization_schedules={"lk": WeightSchedule(warmup_steps=1)})
    with pytest.raises(UserError, match="cycle_steps of a weight is 1; it must be at least its warmup_steps, 2"):
        WeightSchedule(warmup_steps=2, cycle_steps=1)
