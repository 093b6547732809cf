"""The total correlation of the aggregate posterior, from a discriminator of its samples.

Source: Kim and Mnih, Disentangling by Factorising (FactorVAE), arXiv 1802.05983, section 3 and algorithm 2. A network D
learns to tell latents of a batch from those in which each latent comes from another image of the batch, a sample of the
product of the marginals. Then log D/(1 - D), its logit, estimates log q(z) - Σ_d log q(z_d), whose mean is the total
correlation.

The paper permutes the latents of a second batch. Here they are those of the same batch, as in the implementation of
Locatello et al. (github.com/google-research/disentanglement_lib). D is trained in the same backward pass: the total
correlation sees D's parameters as constants, and D's own loss sees the latents as constants.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_ae.core.draws import Draws
from ldm_ae.core.errors import UserError
from ldm_ae.models import Autoencoder, Posterior
from ldm_ae.regularizers.beta_tcvae import require_gaussian
from ldm_ae.regularizers.interface import Regularized, Regularizer


class FactorVAE(Regularizer):
    """The terms `total_correlation`, in nats, and `density_ratio`, the loss of the discriminator of latents.

    `objective.regularization_weights` has the paper's γ (6.4 for dSprites) for `total_correlation`, and 1 for
    `density_ratio`. The autoencoder's optimizer updates the discriminator too; `optimizer.groups` with the pattern
    `regularizer.*` gives it another learning rate. Latents and images are not changed. The variables are the channels;
    for maps of latents, both terms are sums over the places.

    Args:
        width: Width of each hidden layer of the discriminator.
        depth: Number of hidden layers.
    """

    short_names = ("factor-vae",)
    mixes_samples = True
    needed_terms = frozenset({"density_ratio"})

    def __init__(self, *, width: int = 1000, depth: int = 6):
        super().__init__()
        if width < 1 or depth < 1:
            raise UserError(f"FactorVAE: expected width and depth of at least 1, got {width} and {depth}")
        self.width, self.depth = width, depth
        self.discriminator: Any = None

    @classmethod
    def example(cls) -> FactorVAE:
        return cls(width=8, depth=2)

    @property
    def identity(self) -> str:
        return f"{super().identity} of {self.depth} layers of {self.width}"

    def prepare(self, model: Autoencoder) -> None:
        require_gaussian(self, model)
        widths = [model.latent_spec.channels, *[self.width] * self.depth]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.LeakyReLU(0.2)]
        self.discriminator = nn.Sequential(*layers, nn.Linear(self.width, 1))

    def forward(self, posterior: Posterior, latents: Tensor, pixel_values: Tensor, draws: Draws) -> Regularized:  # noqa: ARG002
        assert self.discriminator is not None, "prepare comes before the first pass"
        places = latents.float().flatten(2).transpose(1, 2)  # (B, P, C)
        constants = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        ratio = torch.func.functional_call(self.discriminator, constants, (places,)).float()
        order = draws.uniform(*places.shape[1:]).argsort(dim=0).to(places.device)
        real, permuted = places.detach(), places.detach().gather(0, order)
        is_real, is_permuted = self.discriminator(torch.cat([real, permuted])).float().chunk(2)
        loss = 0.5 * (F.softplus(-is_real) + F.softplus(is_permuted))
        terms = {"total_correlation": ratio.sum(dim=(1, 2)), "density_ratio": loss.sum(dim=(1, 2))}
        return Regularized(latents, pixel_values, terms)
