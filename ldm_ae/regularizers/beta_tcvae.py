"""The total correlation of the aggregate posterior, from the posteriors of a batch.

Source: Chen et al., Isolating Sources of Disentanglement in VAEs (beta-TCVAE), arXiv 1802.04942. With q(z) the mean of
all N images' posteriors and z_d the latents,

    TC = KL(q(z) || Π q(z_d)) = E_q(z) [ log q(z) - Σ_d log q(z_d) ]

The mean KL to the prior is I(x; z) + TC + Σ_d KL(q(z_d) || p(z_d)), so that the weight 1 of `kl` and β - 1 of
`total_correlation` are the paper's loss, in which α and γ are 1.

From M images of a batch, the density at a latent z_i that was drawn for image i is estimated as

    stratified:  q(z_i) ~ 1/N q(z_i|x_i) + (N - 1)/N mean over j ≠ i of q(z_i|x_j)
    weighted:    q(z_i) ~ 1/(NM) Σ_j q(z_i|x_j)

The first is without bias (the paper's appendix C.2; its estimator gives one of the other images another weight, here
all have the same). The second is the paper's equation 5, with which it was trained: a lower bound whose TC is about
(D - 1) log N too large where posteriors overlap. The logarithms of both have the bias of few samples.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ldm_ae.core.draws import Draws
from ldm_ae.core.dry_run import is_dry
from ldm_ae.core.errors import UserError
from ldm_ae.models import Autoencoder, GaussianPosterior, Posterior
from ldm_ae.regularizers.interface import Regularized, Regularizer


class BetaTCVAE(Regularizer):
    """The term `total_correlation`, in nats; latents and images are not changed.

    The variables are the channels. For maps of latents the term is summed over the places; the images of a batch are
    compared at each, so that memory grows with the square of the batch times the number of latents.

    Args:
        estimator: `stratified` or `weighted`, as above.
        images: N, the number of training images; null takes that of the run.
    """

    short_names = ("beta-tcvae",)
    mixes_samples = True

    def __init__(self, *, estimator: Literal["stratified", "weighted"] = "stratified", images: int | None = None):
        super().__init__()
        if images is not None and images < 2:
            raise UserError(f"BetaTCVAE: expected images of at least 2, got {images}")
        self.estimator, self.images = estimator, images

    @classmethod
    def example(cls) -> BetaTCVAE:
        return cls(images=100)

    def prepare(self, model: Autoencoder) -> None:
        require_gaussian(self, model)

    def count_images(self, count: int) -> None:
        self.images = count if self.images is None else self.images

    def forward(self, posterior: Posterior, latents: Tensor, pixel_values: Tensor, draws: Draws) -> Regularized:  # noqa: ARG002
        assert isinstance(posterior, GaussianPosterior)
        if self.images is None and not is_dry(latents):
            raise UserError("BetaTCVAE: expected the number of training images; set images")
        if len(latents) < 2:
            raise UserError("BetaTCVAE compares the images of a batch, which has only one; raise training.batch_size")
        given = (latents.float(), posterior.mean, posterior.log_variance)
        by_place = self.total_correlation(*(each.flatten(2).transpose(1, 2) for each in given))
        return Regularized(latents, pixel_values, {"total_correlation": by_place.sum(dim=1)})

    def total_correlation(self, latents: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
        """Return log q(z_i) - Σ_d log q(z_id) in nats, (M, P), whose mean estimates the total correlation of a place.

        Args:
            latents: (M, P, D), one draw from each of the posteriors of D latents in P places.
            mean: (M, P, D), of the posteriors.
            log_variance: (M, P, D), of the posteriors.
        """
        count, total = len(latents), max(self.images or 0, len(latents))
        squares = (latents[:, None] - mean).square() * torch.exp(-log_variance)
        log_density = -0.5 * (squares + log_variance + math.log(2 * math.pi))  # (M, M, P, D): of z_i given x_j
        if self.estimator == "weighted":
            weights = latents.new_full((count, count), -math.log(count * total))
        else:
            weights = latents.new_full((count, count), math.log((total - 1) / (total * (count - 1))))
            weights.fill_diagonal_(-math.log(total))
        weights = weights[:, :, None]
        joint = torch.logsumexp(log_density.sum(dim=3) + weights, dim=1)
        return joint - torch.logsumexp(log_density + weights[:, :, :, None], dim=1).sum(dim=2)


def require_gaussian(regularizer: Regularizer, model: Autoencoder) -> None:
    """Raise UserError unless a model's posteriors are Gaussian."""
    if not model.has_moments:
        raise UserError(
            f"{type(regularizer).__name__} needs a Gaussian posterior, and {type(model.net).__name__} has none; choose "
            "another regularizer"
        )
