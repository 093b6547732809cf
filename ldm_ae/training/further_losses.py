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
    own: list[Tensor]
    """Weighted: the gradients at the objective's own parameters."""
    per_element: Tensor
    """Scalar to log: the reconstruction and the weighted perceptual loss, a mean over elements."""


def further_losses(objective: Objective, output: TrainingOutput, scale: float, draws: Draws) -> list[FurtherLoss]:
    """Return the losses of all further reconstructions, each through its own networks only."""
    found = []
    for more in output.further:
        leaf = more.reconstructions.detach().requires_grad_()
        terms = objective.reconstruction(leaf, more.target, elements_of=output.target, draws=draws)
        gradient, own = loss_gradients(objective, terms.nll, leaf, scale)
        own = [more.weight * each for each in own]
        nll = more.weight * terms.nll.detach()
        found.append(FurtherLoss(more.name, more.weight * gradient, nll, own, terms.per_element.detach()))
    return found


def own_parameters_loss(objective: Objective, gradients: Sequence[Tensor]) -> Tensor | float:
    """Return a scalar that gives the objective's own parameters these gradients; 0 where it has none."""
    pairs = zip(objective.learning_parameters(), gradients, strict=True)
    return sum(((parameter * gradient).sum() for parameter, gradient in pairs), start=0.0)


def loss_gradients(objective: Objective, loss: Tensor, leaf: Tensor, scale: float) -> tuple[Tensor, list[Tensor]]:
    """Return a reconstruction loss's gradient at the reconstructions, and those at the objective's own parameters.

    They are float32, and have the loss scale on their way through half-precision networks.
    """
    found = torch.autograd.grad(loss * scale, [leaf, *objective.learning_parameters()])
    at_leaf, *own = (gradient.float() / scale for gradient in found)
    return at_leaf, own


def loss_gradient(loss: Tensor, leaf: Tensor, scale: float) -> Tensor:
    """Return a loss's gradient, float32; it has the loss scale on its way through half-precision networks."""
    return torch.autograd.grad(loss * scale, leaf)[0].float() / scale
