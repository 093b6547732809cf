"""The run's state in a checkpoint, checked before it is used: files may come from untrusted sources."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm_ae.core.errors import UserError, reason
from ldm_ae.io.files import read_json
from ldm_ae.training.checkpoints.checkpoint import STATE, load_state

KEYS = ("step", "position", "best", "identity", "optimizers", "scaler", "rng")
"""The entries of a run's state."""
SKIPPED = "skipped_steps"
"""An entry that is only counted and logged. The first checkpoints lack it: without it a run resumes from 0."""
PHASE, FIRST_STEP = "phase", "first_step"
"""Entries of a run with several phases: the phase's number, and the steps of the run before this phase."""
SECONDS = "seconds"
"""An entry of runs that end by time: the seconds that the phase has been trained."""
POWER_EMA = "power_ema"
"""An entry of runs with power-function averages: the averages that the checkpoint's models do not hold."""
_LARGEST = 2**62
_FIRST_BEST = {"step": int, "score": float}
"""The best validation in checkpoints from before 2026-11-28; `score` has the sign that makes higher better."""
_BEST = {**_FIRST_BEST, "metric": str, "value": float}


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return the run's state in a checkpoint; raise `UserError` that names a missing or wrong entry."""
    state = load_state(checkpoint)
    try:
        check_state(state)
    except ValueError as error:
        raise UserError(f"{checkpoint / f'{STATE}.json'} is not valid: {error}") from error
    return state


def phase_and_step(checkpoint: Path) -> tuple[int, int, float]:
    """Return the phase of a valid checkpoint, and the steps and seconds done in that phase.

    Raises:
        UserError: Its state.json does not tell.
    """
    path = checkpoint / f"{STATE}.json"
    try:
        state = read_json(path)
        if not isinstance(state, dict):
            raise ValueError("it is not the state of a run")
        check_counts(state)
        return state.get(PHASE, 1), state["step"] - state.get(FIRST_STEP, 0), state.get(SECONDS, 0.0)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is not valid: {reason(error)}") from error


def check_counts(state: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless the counts of a run's state are numbers in their ranges."""
    least = {"step": 0, "position": 0, SKIPPED: 0, PHASE: 1, FIRST_STEP: 0}
    for name, smallest in least.items():
        if type(value := state.get(name, smallest)) is not int or not smallest <= value < _LARGEST:
            raise ValueError(f"{name} must be a whole number of at least {smallest}")
    if type(seconds := state.get(SECONDS, 0.0)) is not float or not 0 <= seconds < _LARGEST:
        raise ValueError(f"{SECONDS} must be a number of at least 0")


def check_state(state: Any) -> None:
    """Raise `ValueError` unless `state` has the entries of a run's state, with valid types and ranges."""
    if not isinstance(state, dict):
        raise ValueError("it is not the state of a run")
    if missing := [key for key in KEYS if key not in state]:
        raise ValueError(f"'{missing[0]}' is missing")
    check_counts(state)
    best = state.get("best")
    if best is not None and not (
        isinstance(best, dict) and {key: type(value) for key, value in best.items()} in (_BEST, _FIRST_BEST)
    ):
        raise ValueError("best must hold step, score, metric and value, or be null")
    identity = state.get("identity")
    if not isinstance(identity, dict) or not all(
        isinstance(v, str | int | float | type(None)) for v in identity.values()
    ):
        raise ValueError("identity must hold numbers, strings or null")
    for name in ("optimizers", "rng"):
        if not isinstance(entries := state.get(name), list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"{name} must be a list of states")
    if not isinstance(power := state.get(POWER_EMA, {}), dict) or not all(isinstance(v, dict) for v in power.values()):
        raise ValueError(f"{POWER_EMA} must hold averages by length")
    if not isinstance(state.get("scaler"), dict | type(None)):
        raise ValueError("scaler must be a state, or null")
