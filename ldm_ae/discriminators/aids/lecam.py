"""LeCam regularization: the logits stay near their averages, which matters where there is little data.

Source: Tseng et al., Regularizing Generative Adversarial Networks under Limited Data, arXiv 2104.03310, section 3,
with the ReLU and the decay of the authors' code. Their code adds a step's means to the averages before its penalty and
starts to average after 1,000 steps; here the penalty compares with the averages of earlier steps, and the first means
are their initial values. Others (1d-tokenizer) square the mean over a batch, which would then depend on its size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.discriminators.aids.interface import DiscriminatorAid, image_means
from ldm_ae.discriminators.interface import Discriminator


class LeCam(DiscriminatorAid):
    """E relu(D(x) - a_fake)² + E relu(a_real - D(x̂))², with moving averages a of the logits.

    D is the mean of an image's logits where there are several.

    Args:
        weight: Weight of the term. The authors have 0.3 for small data sets, 1d-tokenizer 0.001 for ImageNet.
        decay: Decay of the averages in each step.
    """

    short_names = ("lecam",)
    average_real: Tensor
    average_fake: Tensor
    has_started: Tensor

    def __init__(self, *, weight: float = 0.001, decay: float = 0.999):
        super().__init__()
        if weight < 0 or not 0 <= decay < 1:
            raise UserError(
                f"LeCam: expected a weight of at least 0 and a decay in [0, 1), got weight {weight} and decay {decay}"
            )
        self.weight, self.decay = weight, decay
        for name in ("average_real", "average_fake", "has_started"):
            self.register_buffer(name, torch.zeros(()))

    @classmethod
    def example(cls) -> LeCam:
        return cls(weight=1.0)

    def penalty(
        self, discriminator: Discriminator, real: Tensor, fake: Tensor, logits: tuple[Tensor, Tensor], step: int
    ) -> Tensor:
        of_real, of_fake = map(image_means, logits)
        distances = F.relu(of_real - self.average_fake).square() + F.relu(self.average_real - of_fake).square()
        return self.weight * self.has_started * distances.mean()

    @torch.no_grad()
    def learn(self, logits_real: Tensor, logits_fake: Tensor) -> None:
        amount = torch.where(self.has_started > 0, 1 - self.decay, 1.0)
        self.average_real.lerp_(logits_real.to(self.average_real), amount)
        self.average_fake.lerp_(logits_fake.to(self.average_fake), amount)
        self.has_started.fill_(1.0)
