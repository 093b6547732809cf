"""Scores of how strange an image is, one a file. A new score is a new file with an `OutlierScore` in it."""

from ldm_ae.core.registry import Registry
from ldm_ae.outliers.scores.interface import OutlierScore

SCORES: Registry[OutlierScore] = Registry("ldm_ae.outliers.scores", OutlierScore, "score", key="name")  # type: ignore[type-abstract]
"""Every score by its name."""
BEST = ("elbo", "codes", "latents", "reconstruction")
"""The first one of these that a model has ranks images by default; docs/REPRESENTATION.md has the measurements."""

__all__ = ["BEST", "SCORES", "OutlierScore"]
