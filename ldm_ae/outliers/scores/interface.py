"""The complete interface of a score of how strange an image is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from ldm_ae.evaluation.metrics.interface import Setting
from ldm_ae.outliers.encoded import Encoded


class OutlierScore(ABC):
    """A number for each image. Higher is stranger, for every score.

    `prepare` is called once, `measure` for each batch of all sets of images, `fit` with the measurements of the
    reference, and then `score` with those of each set. `prepare`, `measure` and `fit` may raise `CannotScoreError`,
    which skips the score with its reason.
    """

    name: str
    """Column of the tables, and the name by which commands choose the score."""
    label: str
    unit: str = ""
    """Unit; `prepare` may set it."""
    explanation: str
    """What the score is, and what it overlooks, in one or two sentences."""

    def prepare(self, setting: Setting) -> None:  # noqa: B027 - a hook; some scores need nothing
        """Check that the model has the score."""

    @abstractmethod
    def measure(self, images: Encoded) -> Tensor:
        """Return what the score needs of each image, (B,) or (B, D) float64 on the CPU."""

    def fit(self, reference: Tensor) -> None:  # noqa: B027 - a hook; some scores need no reference
        """Take the measurements of the reference images, (N,) or (N, D)."""

    def score(self, measured: Tensor) -> Tensor:
        """Return the scores (N,) of measurements (N,) or (N, D); by default, the measurements."""
        return measured

    @property
    def title(self) -> str:
        """Label with the unit."""
        return f"{self.label}, {self.unit}" if self.unit else self.label
