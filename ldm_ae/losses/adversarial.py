"""Losses of the two players, on logits of any shape; each is a mean over all logits of the batch."""

from __future__ import annotations

import abc

import torch.nn.functional as F
from torch import Tensor


class AdversarialLoss(abc.ABC):
    """What the discriminator minimizes on both logits, and the generator on those of its reconstructions."""

    @abc.abstractmethod
    def discriminator(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        """Scalar; falls as `logits_real` rise and `logits_fake` fall."""

    def generator(self, logits_fake: Tensor) -> Tensor:
        """Scalar; falls as `logits_fake` rise. The mean of the negative logits unless a loss says otherwise."""
        return -logits_fake.mean()


class HingeLoss(AdversarialLoss):
    """½ E[relu(1 - D(x))] + ½ E[relu(1 + D(x̂))]; generator -E[D(x̂)]. Lim and Ye, arXiv 1705.02894; LDM's default."""

    def discriminator(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        return 0.5 * (F.relu(1.0 - logits_real).mean() + F.relu(1.0 + logits_fake).mean())


class VanillaLoss(AdversarialLoss):
    """½ E[softplus(-D(x))] + ½ E[softplus(D(x̂))], generator -E[D(x̂)], as taming-transformers names it."""

    def discriminator(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        return 0.5 * (F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean())


class NonSaturatingLoss(VanillaLoss):
    """The discriminator of `VanillaLoss`, generator E[softplus(-D(x̂))]. Goodfellow et al., arXiv 1406.2661,
    section 3."""

    def generator(self, logits_fake: Tensor) -> Tensor:
        return F.softplus(-logits_fake).mean()
