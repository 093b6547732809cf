"""What an adversarial loss is: the losses of the two players, each a mean over all logits of the batch."""

from __future__ import annotations

import abc

from torch import Tensor


class AdversarialLoss(abc.ABC):
    """What the discriminator minimizes on both logits, and the generator on those of its reconstructions."""

    @abc.abstractmethod
    def discriminator(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        """Scalar; falls as `logits_real` rise and `logits_fake` fall."""

    def generator(self, logits_fake: Tensor) -> Tensor:
        """Scalar; falls as `logits_fake` rise. The mean of the negative logits unless a loss says otherwise."""
        return -logits_fake.mean()
