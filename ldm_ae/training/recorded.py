"""The numerics that a run directory was started with."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from ldm_ae.core.environment import ENVIRONMENT
from ldm_ae.core.errors import UserError, printable, reason
from ldm_ae.core.precision import DTYPES, LAYOUTS, Convolutions
from ldm_ae.io.files import read_json

_BEFORE_NUMERICS = {"precision": "bf16", "layout": "channels_last", "machine": "", "reason": ""}
"""The meaning of `auto` in a run from before precision was chosen automatically: the values of every recipe then."""


def recorded_numerics(run: Path) -> dict[str, str] | None:
    """Return the precision and layout that a run directory was started with; None for a new run.

    Raises:
        UserError: Its environment.json is damaged.
    """
    path = run / ENVIRONMENT
    if not path.is_file():
        return None
    try:
        found = read_json(path).get("numerics", _BEFORE_NUMERICS)
        recorded = {name: str(found[name]) for name in _BEFORE_NUMERICS}
        recorded["convolutions"] = str(found.get("convolutions", "torch"))  # Runs from before 2026-11-28 lack it.
        for name, known in (("precision", DTYPES), ("layout", LAYOUTS), ("convolutions", get_args(Convolutions))):
            if recorded[name] not in known:
                raise ValueError(f"{name} is {printable(recorded[name])}")
        return recorded
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({reason(error)}); restore it from a copy, or remove it and give --training.precision"
        ) from error
