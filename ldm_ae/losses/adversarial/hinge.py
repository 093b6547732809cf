"""The hinge loss."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ldm_ae.losses.adversarial.interface import AdversarialLoss


class HingeLoss(AdversarialLoss):
    """½ E[relu(1 - D(x))] + ½ E[relu(1 + D(x̂))]; generator -E[D(x̂)]. Lim and Ye, arXiv 1705.02894; LDM's default."""

    short_names = ("hinge",)

    def discriminator(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        return 0.5 * (F.relu(1.0 - logits_real).mean() + F.relu(1.0 + logits_fake).mean())
