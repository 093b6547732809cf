"""The two optimization steps. Read this file first.

A step is one update of the generator (the autoencoder) and, once it has started, one of the discriminator. Both take
all the step's micro-batches and leave gradients that equal those of one batch as large as all of them together.

Source: Esser et al., Taming Transformers, arXiv 2012.09841, equation 7 for the adaptive weight; arXiv 2112.10752.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldm_ae.core.draws import AUGMENTATION
from ldm_ae.losses import Objective
from ldm_ae.training.adaptive_terms import (
    Decoded,
    DecoderGradients,
    adaptive_factors,
    backward_to_encoder,
    decode_ahead,
)
from ldm_ae.training.further_losses import own_parameters_loss
from ldm_ae.training.gradients import (
    OutputGradients,
    adaptive_weight,
    last_layer_gradients,
    measure_ahead,
    output_gradients,
)
from ldm_ae.training.step_parts import Logs, MicroBatch, Reconstructed, StepParts, forward
from ldm_ae.training.training_pass import TrainingOutput


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
        known, gan_weight = measure_ahead(parts, batches, gan_weight)
    decoded: list[Decoded] | None = None
    factors: dict[str, Tensor] = {}
    if parts.adaptive_terms and len(batches) > 1:  # likewise, before the first backward pass of an encoder
        decoded, factors = decode_ahead(parts, batches, known, gan_weight, with_gan)
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
            surrogate, _, terms = surrogate_loss(parts.objective, output, at_output, gan_weight, step, decoder, factors)
            parts.accelerator.backward(surrogate / len(batches))
        posteriors.append(output.posterior)
        results.append(Reconstructed(output.target.detach(), output.reconstructions.detach()))
        all_logs.append(at_output.logs | {f"{name}_loss": term.detach().mean() for name, term in terms.items()})
    _average_gradients(parts.accelerator, parts.objective)
    logs = _mean_logs(all_logs) | parts.plain_pass.learn(posteriors)
    logs |= {f"{name}_adaptive_weight": factor for name, factor in factors.items()}
    logs |= scheduled_weights(parts.objective, step, results[0].target.device)
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
    objective: Objective, output: TrainingOutput, at_output: OutputGradients, gan_weight: float | Tensor, step: int,
    decoder: DecoderGradients | None = None, factors: Mapping[str, Tensor] | None = None,
) -> Surrogate:  # fmt: skip
    """Return a scalar whose backward pass gives every parameter of the autoencoder its gradient.

    With adaptive terms, `decoder` is the result of the decoder's backward pass, and `factors` multiply their weights.
    The schedules of weights count `step`, the number of updates so far.
    """
    scheduled = objective.config.scheduled_at(step)
    both = scheduled | {name: scheduled.get(name, 1.0) * value for name, value in (factors or {}).items()}
    terms = output.posterior.regularization() | output.terms
    regularization = objective.regularization(terms, output.posterior.mode(), both)
    if decoder is not None:
        surrogate = decoder.surrogate(output) + regularization
    else:  # a scalar whose gradient at the reconstructions is that of the losses
        pairs = zip(output.all_reconstructions, at_output.weighted(gan_weight), strict=True)
        surrogate = torch.stack([(found * gradient).sum() for found, gradient in pairs]).sum() + regularization
    surrogate = surrogate + own_parameters_loss(objective, at_output.own)
    return Surrogate(surrogate, regularization, terms)


def scheduled_weights(objective: Objective, step: int, device: torch.device) -> Logs:
    """Return the weights of the scheduled terms after `step` updates, scalars to log."""
    weights, scheduled = objective.config.regularization_weights, objective.config.scheduled_at(step)
    return {f"{name}_weight": torch.tensor(weights[name] * factor, device=device) for name, factor in scheduled.items()}


def discriminator_loss(parts: StepParts, batch: MicroBatch, result: Reconstructed, step: int) -> tuple[Tensor, Logs]:
    """Return the discriminator's loss on a micro-batch, a scalar, and scalars to log."""
    assert parts.discriminator is not None
    assert parts.plain_discriminator is not None
    fake, real = parts.objective.comparable(result.reconstructions.detach(), result.target.detach())
    real, fake = (parts.plain_discriminator.augment(images, batch.draws(AUGMENTATION)) for images in (real, fake))
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


def _sync_on_last(accelerator: Accelerator, module: nn.Module, i: int, count: int) -> AbstractContextManager[None]:
    """Average gradients across processes in the last micro-batch's backward pass only."""
    return nullcontext() if i == count - 1 else accelerator.no_sync(module)


def _average_gradients(accelerator: Accelerator, objective: Objective) -> None:
    """Average the gradients of the objective's own parameters, which stand outside DistributedDataParallel."""
    for parameter in objective.learning_parameters():
        assert parameter.grad is not None
        parameter.grad = accelerator.reduce(parameter.grad, reduction="mean")


def _mean_logs(all_logs: Sequence[Logs]) -> Logs:
    return {name: torch.stack([logs[name] for logs in all_logs]).mean() for name in all_logs[0]}
