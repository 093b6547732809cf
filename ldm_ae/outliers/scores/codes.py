"""The likelihood of an image's codes under a prior. Source: van den Oord et al., arXiv 1711.00937, section 3.3."""

from __future__ import annotations

from torch import Tensor

from ldm_ae.evaluation.metrics.interface import CannotScoreError, Setting
from ldm_ae.outliers.encoded import Encoded, likelihood_kind
from ldm_ae.outliers.scores.interface import OutlierScore


class CodeLikelihood(OutlierScore):
    """Negative log-likelihood of the codes of a discrete model under a saved prior."""

    name = "codes"
    label = "Bits of the codes"
    explanation = (
        "-log2 of the probability of the codes under the prior: the rate of an entropy coder. It can prefer simple "
        "images, whose codes are easy to predict."
    )

    def prepare(self, setting: Setting) -> None:
        """Check that there is a prior."""
        assert setting.model is not None
        if setting.prior is None:
            missing = "no codes" if setting.model.codebook is None else "no prior over its codes; give one by --prior"
            raise CannotScoreError(f"the model has {missing}")
        self.unit = likelihood_kind(setting).unit

    def measure(self, images: Encoded) -> Tensor:
        """Return the bits of each image's codes divided by its number of pixels."""
        return images.negative_log_likelihood
