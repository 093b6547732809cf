"""The logistic loss with a generator that does not saturate."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ldm_ae.losses.adversarial.vanilla import VanillaLoss


class NonSaturatingLoss(VanillaLoss):
    """The discriminator of `VanillaLoss`, generator E[softplus(-D(x̂))]. Goodfellow et al., arXiv 1406.2661,
    section 3."""

    short_names = ("non-saturating",)

    def generator(self, logits_fake: Tensor) -> Tensor:
        return F.softplus(-logits_fake).mean()
