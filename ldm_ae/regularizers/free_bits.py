"""A KL that counts only above a threshold: no pressure on channels that already hold little.

Source: Kingma et al., Improving Variational Inference with Inverse Autoregressive Flow, arXiv 1606.04934, appendix C.8,
"free bits": the sum over groups of latents of max(λ, KL of the group). The paper averages a group's KL over the
minibatch before the maximum; here each image has its own maximum, with the mean over the places of a channel in place
of that over the minibatch, so that no sample depends on another one.

The soft clip replaces max(λ, KL) by λ + τ softplus((KL - λ) / τ), whose slope rises smoothly from 0 to 1 around λ; with
the maximum a group has either no gradient or all of it. It tends to the maximum as τ tends to 0.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from ldm_ae.core.draws import Draws
from ldm_ae.core.errors import UserError
from ldm_ae.models import Autoencoder, GaussianPosterior, Posterior
from ldm_ae.regularizers.interface import Regularized, Regularizer


class FreeBits(Regularizer):
    """The term `free_bits_kl`, in nats, which takes the place of `kl` in `objective.regularization_weights`.

    Args:
        free_nats: λ: the KL of a latent element in nats that is free; 1 nat is 1.44 bits.
        per: The group to which it applies: the mean over each `channel` of an image, or each `element`.
        softness: τ of the soft clip in nats; 0 is the maximum.
    """

    short_names = ("free-bits",)

    def __init__(
        self, *, free_nats: float = 0.25, per: Literal["channel", "element"] = "channel", softness: float = 0.0
    ):
        super().__init__()
        if free_nats <= 0:
            raise UserError(f"FreeBits: expected free_nats above 0, got {free_nats}")
        if softness < 0:
            raise UserError(f"FreeBits: expected softness of at least 0, got {softness}")
        self.free_nats, self.per, self.softness = free_nats, per, softness

    def prepare(self, model: Autoencoder) -> None:
        if not model.has_moments:
            raise UserError(
                f"FreeBits clips the KL of a Gaussian posterior, and {type(model.net).__name__} has none; choose "
                "another regularizer"
            )

    def forward(self, posterior: Posterior, latents: Tensor, pixel_values: Tensor, draws: Draws) -> Regularized:  # noqa: ARG002
        assert isinstance(posterior, GaussianPosterior)
        kl = posterior.kl_map()
        if self.per == "channel":
            kl = kl.mean(dim=(2, 3), keepdim=True).expand_as(kl)
        return Regularized(latents, pixel_values, {"free_bits_kl": self._clipped(kl).sum(dim=(1, 2, 3))})

    def _clipped(self, kl: Tensor) -> Tensor:
        if self.softness == 0:
            return kl.clamp(min=self.free_nats)
        return self.free_nats + self.softness * F.softplus((kl - self.free_nats) / self.softness)
