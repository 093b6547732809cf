"""Area under the ROC curve of a score. Source: Fawcett, An introduction to ROC analysis, 2006."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ldm_ae.core.errors import UserError


def auroc(normal: ArrayLike, strange: ArrayLike) -> float:
    """Return the probability that a strange image has a higher score than a normal one; ties count one half.

    Args:
        normal: (N,) scores of normal images.
        strange: (M,) scores of strange images.

    Returns:
        A number in [0, 1]: 1 separates the sets, 0.5 is chance, and below 0.5 strange images look more normal.

    Raises:
        UserError: A set is empty, or a score is not finite.
    """
    low, high = (np.asarray(values, dtype=np.float64).ravel() for values in (normal, strange))
    if not len(low) or not len(high):
        raise UserError(f"AUROC needs scores of normal and strange images, got {len(low)} and {len(high)}")
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise UserError("AUROC needs finite scores, got some that are infinite or not numbers")
    low = np.sort(low)
    below, up_to = np.searchsorted(low, high, side="left"), np.searchsorted(low, high, side="right")
    return float((below + up_to).mean() / (2 * len(low)))
