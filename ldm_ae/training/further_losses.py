"""The reconstruction losses of what a regularizer decodes beside the latents of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_ae.core.draws import Draws
from ldm_ae.losses import Objective
from ldm_ae.training.training_pass import TrainingOutput


class FurtherLoss(NamedTuple):
    """One such loss, and its gradient at its reconstructions."""

    name: str
    gradient: Tensor
    """Weighted, (B, 3, H', W')."""
    nll: Tensor
    """Scalar, weighted."""
    error: Tensor
    """Scalar: the unweighted error before the log-variance."""
    per_element: Tensor
    """Scalar to log: the reconstruction and the weighted perceptual loss, a mean over elements."""


def further_losses(objective: Objective, output: TrainingOutput, scale: float, draws: Draws) -> list[FurtherLoss]:
    """Return the losses of all further reconstructions, each through its own networks only."""
    found = []
    for more in output.further:
        leaf = more.reconstructions.detach().requires_grad_()
        terms = objective.reconstruction(leaf, more.target, elements_of=output.target, draws=draws)
        gradient, nll = more.weight * loss_gradient(terms.nll, leaf, scale), more.weight * terms.nll.detach()
        found.append(FurtherLoss(more.name, gradient, nll, terms.error.detach(), terms.per_element.detach()))
    return found


def log_variance_loss(
    objective: Objective, output: TrainingOutput, error: Tensor, further: Sequence[FurtherLoss]
) -> Tensor:
    """Return a scalar that gives the log-variance its gradient: the nll of fixed errors."""
    total = objective.nll(error, output.target)
    for more, found in zip(output.further, further, strict=True):
        total = total + more.weight * objective.nll(found.error, output.target)
    return total


def loss_gradient(loss: Tensor, leaf: Tensor, scale: float) -> Tensor:
    """Return a loss's gradient, float32; it has the loss scale on its way through half-precision networks."""
    return torch.autograd.grad(loss * scale, leaf)[0].float() / scale
