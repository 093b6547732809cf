"""The gradients of the losses at the reconstructions, and the adaptive weight of the adversarial loss that they give.

Source: Esser et al., Taming Transformers, arXiv 2012.09841, equation 7.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_ae.core.draws import AUGMENTATION, FURTHER_VIEW, VIEW
from ldm_ae.training.further_losses import FurtherLoss, further_losses, loss_gradient, loss_gradients
from ldm_ae.training.step_parts import Logs, MicroBatch, StepParts, forward
from ldm_ae.training.training_pass import TrainingOutput, TrainingPass

ADAPTIVE_EPS = 1e-4
ADAPTIVE_MAX = 1e4


class OutputGradients(NamedTuple):
    """Gradients of a micro-batch's two losses at its reconstructions, (B, 3, H, W) each, and the losses themselves."""

    nll: Tensor
    gan: Tensor | None
    own: list[Tensor]
    """The gradients of `nll` and the further losses at the objective's own parameters, in their order."""
    logs: Logs
    further: list[FurtherLoss]

    def weighted(self, gan_weight: float | Tensor) -> list[Tensor]:
        """Return the gradient of all losses at each of the pass's `all_reconstructions`."""
        both = self.nll if self.gan is None else self.nll + gan_weight * self.gan
        return [both, *(more.gradient for more in self.further)]


def output_gradients(parts: StepParts, batch: MicroBatch, output: TrainingOutput, with_gan: bool) -> OutputGradients:
    """Return ∂nll/∂x̂ and, if requested, ∂gan/∂x̂, each through its own network only."""
    objective, scale = parts.objective, parts.loss_scale
    leaf = output.reconstructions.detach().requires_grad_()
    terms = objective.reconstruction(leaf, output.target, draws=batch.draws(VIEW))
    nll_gradient, own = loss_gradients(objective, terms.nll, leaf, scale)
    logs = {"rec_loss": terms.rec_loss, "nll_loss": terms.nll}
    if terms.perceptual_loss is not None:
        logs["perceptual_loss"] = terms.perceptual_loss
        logs |= {f"{name}_loss": term for name, term in terms.perceptual_terms.items()}
    gan_gradient = None
    if with_gan:
        assert parts.plain_discriminator is not None
        judged, _ = objective.comparable(leaf, output.target)
        fake = parts.plain_discriminator.augment(judged, batch.draws(AUGMENTATION))
        with parts.accelerator.autocast():
            logits_fake = parts.plain_discriminator(fake)
        logs["generator_loss"] = objective.config.adversarial.generator(logits_fake.float())
        gan_gradient = loss_gradient(logs["generator_loss"], leaf, scale)
    further = further_losses(objective, output, scale, batch.draws(FURTHER_VIEW))
    logs = {name: value.detach() for name, value in logs.items()}
    logs |= {f"{more.name}_loss": more.per_element for more in further}
    own = [torch.stack(each).sum(dim=0) for each in zip(own, *(more.own for more in further), strict=True)]
    return OutputGradients(nll_gradient, gan_gradient, own, logs, further)


def last_layer_gradients(parts: StepParts, reconstructions: Tensor, at_output: OutputGradients) -> Tensor:
    """Return both losses' gradients at the decoder's last weight, stacked (2, ...); differentiate only that layer."""
    last_layer = parts.plain_autoencoder.last_layer
    assert at_output.gan is not None
    assert last_layer is not None, "check_capabilities"
    scale = parts.loss_scale
    both = [
        torch.autograd.grad(reconstructions, last_layer, gradient * scale, retain_graph=True)[0].float() / scale
        for gradient in (at_output.nll, at_output.gan)
    ]  # fmt: skip
    return torch.stack(both)


def adaptive_weight(parts: StepParts, gradients: Sequence[Tensor]) -> Tensor:
    """Return λ = ‖∇nll‖ / (‖∇gan‖ + 1e-4), at most 1e4, a scalar over every micro-batch of every process."""
    nll_norm, gan_norm = mean_norms(parts, gradients)
    return gradient_ratio(nll_norm, gan_norm)


def mean_norms(parts: StepParts, gradients: Sequence[Tensor]) -> Tensor:
    """Return the norms (N,) of N gradients of a layer, after their means over every micro-batch of every process.

    Args:
        parts: The modules.
        gradients: (N, ...) for each micro-batch of this process.
    """
    mean = parts.accelerator.reduce(torch.stack(list(gradients)).mean(dim=0), reduction="mean")
    return mean.flatten(1).norm(dim=1)


def gradient_ratio(reference: Tensor, norm: Tensor) -> Tensor:
    """Return ‖reference‖ / (‖gradient‖ + 1e-4), at most 1e4, of two norms, scalars."""
    return (reference / (norm + ADAPTIVE_EPS)).clamp(0.0, ADAPTIVE_MAX)


def measure_ahead(
    parts: StepParts, batches: Sequence[MicroBatch], gan_weight: float | Tensor
) -> tuple[list[OutputGradients], Tensor]:
    """Return every micro-batch's output gradients and the adversarial weight, from passes that keep no graphs."""
    measured, last = [], []
    with _only_last_layer(parts.plain_pass), parts.accelerator.autocast():
        for batch in batches:
            output = forward(parts.plain_pass, batch)
            measured.append(output_gradients(parts, batch, output, with_gan=True))
            last.append(last_layer_gradients(parts, output.reconstructions, measured[-1]))
    return measured, gan_weight * adaptive_weight(parts, last)


@contextmanager
def _only_last_layer(training_pass: TrainingPass) -> Iterator[None]:
    """Keep a graph for the last layer alone in forward passes within the context."""
    last = training_pass.autoencoder.last_layer
    frozen = [p for p in training_pass.parameters() if p.requires_grad and p is not last]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
