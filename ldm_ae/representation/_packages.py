"""Packages of extras that some methods need."""

from __future__ import annotations

import importlib.util

from ldm_ae.core.errors import UserError


def require_sklearn(what: str) -> None:
    """Raise `UserError` if scikit-learn is missing; `what` begins the message."""
    if importlib.util.find_spec("sklearn") is None:
        raise UserError(f"{what} needs scikit-learn: pip install 'ldm_ae[offline]'")


def require_matplotlib(what: str) -> None:
    """Raise `UserError` if matplotlib is missing; `what` begins the message."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError(f"{what} needs matplotlib: pip install 'ldm_ae[plots]'")
