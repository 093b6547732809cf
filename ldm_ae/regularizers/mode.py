"""An autoencoder without noise: the decoder decodes the posterior's mode.

With no weight on `kl` this is the plain autoencoder, whose linear form is principal component analysis (Hinton and
Salakhutdinov, Reducing the Dimensionality of Data with Neural Networks, Science 313, 2006).
"""

from __future__ import annotations

from torch import Tensor

from ldm_ae.core.draws import Draws
from ldm_ae.models import Posterior
from ldm_ae.regularizers.interface import Regularized, Regularizer


class Mode(Regularizer):
    """The posterior's mode in place of a sample, with the encoded images as the target.

    The reconstruction gives the log-variance of a Gaussian posterior no gradient. Start it at -30
    (`model.init_args.initial_log_variance`), and samples of the trained model equal its mode; or encode with
    `--latents mode`.
    """

    short_names = ("deterministic",)

    def forward(self, posterior: Posterior, latents: Tensor, pixel_values: Tensor, draws: Draws) -> Regularized:  # noqa: ARG002
        return Regularized(posterior.mode(), pixel_values)
