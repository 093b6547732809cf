"""The two optimization steps. Read this file first.

A step is one update of the generator (the autoencoder) and, once it has started, one of the discriminator. Both take
all the step's micro-batches and leave gradients that equal those of one batch as large as all of them together.

Source: Esser et al., Taming Transformers, arXiv 2012.09841, equation 7 for the adaptive weight; arXiv 2112.10752.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldm_ae.core.draws import AUGMENTATION, REGULARIZER, Draws
from ldm_ae.discriminators import DiscriminatorPass
from ldm_ae.losses import Objective
from ldm_ae.training.adaptive_terms import (
    ADAPTIVE_EPS,
    ADAPTIVE_MAX,
    DecoderGradients,
    adaptive_terms,
    encoder_gradients,
    gradient_ratio,
    term_factors,
    through_decoder,
)
from ldm_ae.training.further_losses import FurtherLoss, further_losses, log_variance_loss, loss_gradient
from ldm_ae.training.training_pass import TrainingOutput, TrainingPass

__all__ = ["ADAPTIVE_EPS", "ADAPTIVE_MAX"]  # beside what is defined here

Logs = dict[str, Tensor]


class MicroBatch(NamedTuple):
    """The inputs of one forward pass."""

    pixel_values: Tensor
    """(B, 3, H, W) in [-1, 1]."""
    noise: Tensor
    """(B, C, h, w) standard normal, for the posterior's draw."""
    seeds: tuple[int, ...]
    """Seeds of all further random numbers of each sample in this step."""
    step_seed: int = 0
    """Seed of the random numbers that all samples of the step share, over its micro-batches and processes."""

    def draws(self, stream: str) -> Draws:
        """Return a stream's random numbers from its start: two passes over the same images draw the same numbers."""
        return Draws(self.seeds, stream, self.step_seed)


class Reconstructed(NamedTuple):
    """The outputs of the generator's step for a micro-batch, without a graph."""

    target: Tensor
    """(B, 3, H, W) in [-1, 1]: the real images of the discriminator's step."""
    reconstructions: Tensor
    """(B, 3, H, W), not clamped."""


@dataclass
class StepParts:
    """The modules that both steps use. `training_pass` and `discriminator` are as Accelerate prepared them."""

    accelerator: Accelerator
    training_pass: nn.Module
    """A `TrainingPass`."""
    objective: Objective
    discriminator: nn.Module | None = None
    """A `DiscriminatorPass`."""

    def __post_init__(self) -> None:
        self.plain_pass: TrainingPass = _unwrap(self.training_pass)
        self.plain_autoencoder = self.plain_pass.autoencoder
        pair: DiscriminatorPass | None = None if self.discriminator is None else _unwrap(self.discriminator)
        # The generator's step bypasses DistributedDataParallel: it needs no gradient of the discriminator.
        self.plain_discriminator = None if pair is None else pair.discriminator

    @property
    def adaptive_terms(self) -> list[str]:
        """The regularizer's terms whose weights are measured at the encoder's last layer; the graph is then cut."""
        return adaptive_terms(self.plain_pass.regularizer.adaptive_terms, self.objective.config.regularization_weights)


class OutputGradients(NamedTuple):
    """Gradients of a micro-batch's two losses at its reconstructions, (B, 3, H, W) each, and the losses themselves."""

    nll: Tensor
    gan: Tensor | None
    error: Tensor
    """Scalar: the reconstruction error before the log-variance."""
    logs: Logs
    further: list[FurtherLoss]

    def weighted(self, gan_weight: float | Tensor) -> list[Tensor]:
        """Return the gradient of all losses at each of the pass's `all_reconstructions`."""
        both = self.nll if self.gan is None else self.nll + gan_weight * self.gan
        return [both, *(more.gradient for more in self.further)]


def generator_step(parts: StepParts, batches: Sequence[MicroBatch], step: int) -> tuple[list[Reconstructed], Logs]:
    """Leave the autoencoder's gradients of the whole objective in `.grad`, and none in the discriminator.

    Take each loss's gradient once, at the reconstructions; compute the adaptive weight from those and the last layer
    alone; and propagate the weighted sum through the autoencoder in one backward pass. Adaptive terms of a regularizer
    interrupt it between decoder and encoder (`adaptive_terms.py`).

    Args:
        parts: The modules.
        batches: The step's micro-batches of this process.
        step: Number of updates done so far; the schedule of the adversarial weight counts them.

    Returns:
        Targets and reconstructions of each micro-batch, and scalars to log (means over this process).
    """
    gan_weight: float | Tensor = parts.objective.config.gan_weight_at(step) if parts.discriminator is not None else 0.0
    with_gan = bool(gan_weight > 0)
    adaptive = with_gan and parts.objective.config.adaptive_gan_weight
    known: list[OutputGradients] | None = None
    if adaptive and len(batches) > 1:
        # The weight belongs to the whole batch and is needed before the first backward pass.
        known, gan_weight = _measure_ahead(parts, batches, gan_weight)
    decoded: list[Decoded] | None = None
    factors: dict[str, Tensor] = {}
    if parts.adaptive_terms and len(batches) > 1:  # likewise, before the first backward pass of an encoder
        decoded, factors = _decode_ahead(parts, batches, known, gan_weight, with_gan)
        known = [each.at_output for each in decoded]
    results, all_logs, posteriors = [], [], []
    for i, batch in enumerate(batches):
        with _sync_on_last(parts.accelerator, parts.training_pass, i, len(batches)):
            output = forward(
                parts.training_pass, batch, cut=bool(parts.adaptive_terms),
                decoded=decoded[i].reconstructions if decoded else None,
            )  # fmt: skip
            at_output = known[i] if known else output_gradients(parts, batch, output, with_gan)
            if adaptive and known is None:
                gan_weight = gan_weight * adaptive_weight(
                    parts, [last_layer_gradients(parts, output.reconstructions, at_output)]
                )
            decoder = decoded[i].gradients if decoded else None
            if parts.adaptive_terms and decoder is None:
                decoder, at_encoder = backward_to_encoder(parts, output, at_output, gan_weight)
                factors = adaptive_factors(parts, [at_encoder])
            surrogate, _, terms = surrogate_loss(parts.objective, output, at_output, gan_weight, decoder, factors)
            parts.accelerator.backward(surrogate / len(batches))
        posteriors.append(output.posterior)
        results.append(Reconstructed(output.target.detach(), output.reconstructions.detach()))
        all_logs.append(at_output.logs | {f"{name}_loss": term.detach().mean() for name, term in terms.items()})
    _average_gradients(parts.accelerator, parts.objective)
    logs = _mean_logs(all_logs) | parts.plain_pass.learn(posteriors)
    logs |= {f"{name}_adaptive_weight": factor for name, factor in factors.items()}
    if isinstance(gan_weight, Tensor):
        logs["adaptive_weight"] = gan_weight / parts.objective.config.gan_weight_at(step)
    return results, logs


def discriminator_step(
    parts: StepParts, batches: Sequence[MicroBatch], results: Sequence[Reconstructed], step: int
) -> Logs | None:
    """Leave the discriminator's gradients in `.grad`, and none in the autoencoder; return None before it has started.

    Args:
        parts: The modules.
        batches: The step's micro-batches of this process.
        results: The results of the generator's step.
        step: Number of updates done so far.
    """
    if parts.discriminator is None or step < parts.objective.config.discriminator_start:
        return None
    assert parts.plain_discriminator is not None
    all_logs = []
    for i, (batch, result) in enumerate(zip(batches, results, strict=True)):
        with _sync_on_last(parts.accelerator, parts.discriminator, i, len(batches)):
            loss, logs = discriminator_loss(parts, batch, result, step)
            parts.accelerator.backward(loss / len(batches))
        all_logs.append(logs)
    logs = _mean_logs(all_logs)
    logits = torch.stack([logs["logits_real"], logs["logits_fake"]])
    parts.plain_discriminator.learn(*parts.accelerator.reduce(logits, reduction="mean"))
    return logs


class Surrogate(NamedTuple):
    """A micro-batch's loss with the gradient of the whole objective, but with another value."""

    loss: Tensor
    regularization: Tensor
    """Scalar: the weighted terms of the posterior and the regularizer."""
    terms: dict[str, Tensor]
    """The unweighted terms, (B,) each."""


def surrogate_loss(
    objective: Objective, output: TrainingOutput, at_output: OutputGradients, gan_weight: float | Tensor,
    decoder: DecoderGradients | None = None, factors: Mapping[str, Tensor] | None = None,
) -> Surrogate:  # fmt: skip
    """Return a scalar whose backward pass gives every parameter of the autoencoder its gradient.

    With adaptive terms, `decoder` is the result of the decoder's backward pass, and `factors` multiply their weights.
    """
    terms = output.posterior.regularization() | output.terms
    regularization = objective.regularization(terms, output.posterior.mode(), factors)
    if decoder is not None:
        surrogate = decoder.surrogate(output) + regularization
    else:  # a scalar whose gradient at the reconstructions is that of the losses
        pairs = zip(output.all_reconstructions, at_output.weighted(gan_weight), strict=True)
        surrogate = torch.stack([(found * gradient).sum() for found, gradient in pairs]).sum() + regularization
    surrogate = surrogate + log_variance_loss(objective, output, at_output.error, at_output.further)
    return Surrogate(surrogate, regularization, terms)


def discriminator_loss(parts: StepParts, batch: MicroBatch, result: Reconstructed, step: int) -> tuple[Tensor, Logs]:
    """Return the discriminator's loss on a micro-batch, a scalar, and scalars to log."""
    assert parts.discriminator is not None
    assert parts.plain_discriminator is not None
    real, fake = (parts.plain_discriminator.augment(images.detach(), batch.draws(AUGMENTATION)) for images in result)
    with parts.accelerator.autocast():
        logits_real, logits_fake, penalty = parts.discriminator(real, fake, step)
    logits_real, logits_fake = logits_real.float(), logits_fake.float()
    loss = parts.objective.config.adversarial.discriminator(logits_real, logits_fake)
    logs = {"discriminator_loss": loss, "logits_real": logits_real.mean(), "logits_fake": logits_fake.mean()}
    if penalty is not None:
        logs["discriminator_penalty"] = penalty.float()
        loss = loss + penalty.float()
    correct = ((logits_real > 0).float().mean() + (logits_fake < 0).float().mean()) / 2
    return loss, {name: value.detach() for name, value in logs.items()} | {"discriminator_accuracy": correct}


def output_gradients(parts: StepParts, batch: MicroBatch, output: TrainingOutput, with_gan: bool) -> OutputGradients:
    """Return ∂nll/∂x̂ and, if requested, ∂gan/∂x̂, each through its own network only."""
    objective, scale = parts.objective, _loss_scale(parts.accelerator)
    leaf = output.reconstructions.detach().requires_grad_()
    terms = objective.reconstruction(leaf, output.target)
    nll_gradient = loss_gradient(terms.nll, leaf, scale)
    logs = {"rec_loss": terms.rec_loss, "nll_loss": terms.nll}
    if terms.perceptual_loss is not None:
        logs["perceptual_loss"] = terms.perceptual_loss
        logs |= {f"{name}_loss": term for name, term in terms.perceptual_terms.items()}
    gan_gradient = None
    if with_gan:
        assert parts.plain_discriminator is not None
        fake = parts.plain_discriminator.augment(leaf, batch.draws(AUGMENTATION))
        with parts.accelerator.autocast():
            logits_fake = parts.plain_discriminator(fake)
        logs["generator_loss"] = objective.config.adversarial.generator(logits_fake.float())
        gan_gradient = loss_gradient(logs["generator_loss"], leaf, scale)
    further = further_losses(objective, output, scale)
    logs = {name: value.detach() for name, value in logs.items()}
    logs |= {f"{more.name}_loss": more.per_element for more in further}
    return OutputGradients(nll_gradient, gan_gradient, terms.error.detach(), logs, further)


def last_layer_gradients(parts: StepParts, reconstructions: Tensor, at_output: OutputGradients) -> Tensor:
    """Return both losses' gradients at the decoder's last weight, stacked (2, ...); differentiate only that layer."""
    last_layer = parts.plain_autoencoder.last_layer
    assert at_output.gan is not None
    assert last_layer is not None, "check_capabilities"
    scale = _loss_scale(parts.accelerator)
    both = [
        torch.autograd.grad(reconstructions, last_layer, gradient * scale, retain_graph=True)[0].float() / scale
        for gradient in (at_output.nll, at_output.gan)
    ]  # fmt: skip
    return torch.stack(both)


def adaptive_weight(parts: StepParts, gradients: Sequence[Tensor]) -> Tensor:
    """Return λ = ‖∇nll‖ / (‖∇gan‖ + 1e-4), at most 1e4, a scalar over every micro-batch of every process."""
    mean = parts.accelerator.reduce(torch.stack(list(gradients)).mean(dim=0), reduction="mean")
    nll_norm, gan_norm = mean.flatten(1).norm(dim=1)
    return gradient_ratio(nll_norm, gan_norm)


def backward_to_encoder(
    parts: StepParts, output: TrainingOutput, at_output: OutputGradients, gan_weight: float | Tensor
) -> tuple[DecoderGradients, Tensor]:
    """Run the decoder's backward pass; return its gradients, and (1 + terms, ...) at the encoder's last weight."""
    layer, scale = parts.plain_autoencoder.encoder_last_layer, _loss_scale(parts.accelerator)
    assert layer is not None, "check_capabilities"
    decoder = through_decoder(output, at_output.weighted(gan_weight), parts.plain_pass.parameters(), scale)
    latents = output.posterior.mode()
    terms = [parts.objective.reduced(output.terms[name], latents) for name in parts.adaptive_terms]
    return decoder, encoder_gradients(output, decoder, terms, layer, scale)


def adaptive_factors(parts: StepParts, gradients: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the factor of each adaptive term's weight, scalars over every micro-batch of every process."""
    mean = parts.accelerator.reduce(torch.stack(list(gradients)).mean(dim=0), reduction="mean")
    return term_factors(parts.adaptive_terms, mean)


def _measure_ahead(
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


class Decoded(NamedTuple):
    """What is left of a micro-batch whose decoder has been passed forward and backward."""

    reconstructions: list[Tensor]
    """All of them, (B, 3, H, W) each, without a graph."""
    at_output: OutputGradients
    gradients: DecoderGradients


def _decode_ahead(
    parts: StepParts, batches: Sequence[MicroBatch], known: list[OutputGradients] | None, gan_weight: float | Tensor,
    with_gan: bool,
) -> tuple[list[Decoded], dict[str, Tensor]]:  # fmt: skip
    """Pass all decoders forward and backward, and return the factors of the adaptive terms' weights.

    The encoders' graphs are not kept, so that each encoder is passed forward once more. The last micro-batch, whose
    backward pass synchronizes processes, has the sums of all parameters' gradients.
    """
    decoded: list[Decoded] = []
    at_encoder = []
    for i, batch in enumerate(batches):
        with parts.accelerator.autocast():
            output = forward(parts.plain_pass, batch, cut=True)
        at_output = known[i] if known else output_gradients(parts, batch, output, with_gan)
        gradients, at_layer = backward_to_encoder(parts, output, at_output, gan_weight)
        decoded.append(Decoded([found.detach() for found in output.all_reconstructions], at_output, gradients))
        at_encoder.append(at_layer)
        if i > 0:
            decoded[-1].gradients.take_over(decoded[-2].gradients)
    return decoded, adaptive_factors(parts, at_encoder)


def forward(
    training_pass: nn.Module, batch: MicroBatch, *, cut: bool = False, decoded: Sequence[Tensor] | None = None
) -> TrainingOutput:
    """Run the training pass on a micro-batch; see `TrainingPass.forward`."""
    output: TrainingOutput = training_pass(
        batch.pixel_values, batch.noise, batch.draws(REGULARIZER), cut=cut, decoded=decoded
    )
    return output


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


def _loss_scale(accelerator: Accelerator) -> float:
    return accelerator.scaler.get_scale() if accelerator.scaler is not None else 1.0


def _sync_on_last(accelerator: Accelerator, module: nn.Module, i: int, count: int) -> AbstractContextManager[None]:
    """Average gradients across processes in the last micro-batch's backward pass only."""
    return nullcontext() if i == count - 1 else accelerator.no_sync(module)


def _average_gradients(accelerator: Accelerator, objective: Objective) -> None:
    """Average the gradient of the objective's own parameter, which stands outside DistributedDataParallel."""
    for parameter in objective.parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            parameter.grad = accelerator.reduce(parameter.grad, reduction="mean")


def _mean_logs(all_logs: Sequence[Logs]) -> Logs:
    return {name: torch.stack([logs[name] for logs in all_logs]).mean() for name in all_logs[0]}


def _unwrap(module: nn.Module) -> Any:
    return module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module
