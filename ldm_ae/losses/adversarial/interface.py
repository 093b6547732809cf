"""The interface of an adversarial loss: the losses of the two players, each a mean over all logits of the batch."""

from __future__ import annotations

import abc

from torch import Tensor


class AdversarialLoss(abc.ABC):
    """The discriminator's loss on both logits, and the generator's loss on the logits of its reconstructions."""

    @abc.abstractmethod
    def discriminator(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        """Return the discriminator's loss, a scalar; it falls as `logits_real` rise and `logits_fake` fall."""

    def generator(self, logits_fake: Tensor) -> Tensor:
        """Return the generator's loss, a scalar; it falls as `logits_fake` rise. The default is their negative mean."""
        return -logits_fake.mean()
