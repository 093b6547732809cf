"""The logistic loss."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ldm_ae.losses.adversarial.interface import AdversarialLoss


class VanillaLoss(AdversarialLoss):
    """½ E[softplus(-D(x))] + ½ E[softplus(D(x̂))], generator -E[D(x̂)], as taming-transformers names it."""

    short_names = ("vanilla",)

    def discriminator(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        return 0.5 * (F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean())
