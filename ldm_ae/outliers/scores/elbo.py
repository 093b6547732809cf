"""The bound on the likelihood of an image. Source: Kingma and Welling, arXiv 1312.6114.

Bishop, Novelty detection and neural network validation, 1994, proposes the likelihood as the score; Nalisnick et al.,
arXiv 1810.09136, show where it fails.
"""

from __future__ import annotations

from torch import Tensor

from ldm_ae.evaluation.metrics.interface import CannotScoreError, Setting
from ldm_ae.outliers.encoded import DRAWS, Encoded, likelihood_kind
from ldm_ae.outliers.scores.interface import OutlierScore


class NegativeELBO(OutlierScore):
    """Negative evidence lower bound: an upper bound on -log p(x)."""

    name = "elbo"
    label = "Negative ELBO"
    explanation = (
        f"An upper bound on -log p(x), with {DRAWS} draws of the posterior. It prefers simple images: a black image "
        "can have a higher likelihood than the images that the model was trained on."
    )

    def prepare(self, setting: Setting) -> None:
        """Check that the model has a likelihood."""
        kind = likelihood_kind(setting)
        if kind.of_codes:
            raise CannotScoreError("the model has codes and no likelihood of images; codes scores them under the prior")
        self.unit = kind.unit

    def measure(self, images: Encoded) -> Tensor:
        """Return the negative bound of each image."""
        return images.negative_log_likelihood
