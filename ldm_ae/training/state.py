"""What a checkpoint says of its run, checked before anything trusts it: files may come from strangers."""

from __future__ import annotations

from typing import Any

_LARGEST = 2**62


def check_state(state: Any) -> None:
    """ValueError unless `state` has the entries of a run's state, with the types and ranges that they can have."""
    if not isinstance(state, dict):
        raise ValueError("it is no run's state")
    for name in ("step", "position"):
        if type(value := state.get(name)) is not int or not 0 <= value < _LARGEST:
            raise ValueError(f"{name} must be a whole number from 0 on")
    best = state.get("best")
    if best is not None and not (
        isinstance(best, dict) and {key: type(value) for key, value in best.items()} == {"step": int, "score": float}
    ):
        raise ValueError("best must hold step and score, or be null")
    identity = state.get("identity")
    if not isinstance(identity, dict) or not all(
        isinstance(v, str | int | float | type(None)) for v in identity.values()
    ):
        raise ValueError("identity must hold plain values")
    for name in ("optimizers", "rng"):
        if not isinstance(entries := state.get(name), list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"{name} must be a list of states")
    if not isinstance(state.get("scaler"), dict | type(None)):
        raise ValueError("scaler must be a state, or null")
