"""Both losses of a training step for a loop of the caller's own: plain PyTorch, Lightning, Fabric.

`steps.py` computes the same gradients for the Trainer. Here each loss is a scalar whose `backward` the caller runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm_ae.discriminators import Discriminator, DiscriminatorPass
from ldm_ae.losses import Objective, ObjectiveConfig
from ldm_ae.models import Autoencoder, Posterior
from ldm_ae.regularizers import Regularizer
from ldm_ae.training.adaptive_terms import adaptive_factors, backward_to_encoder
from ldm_ae.training.config import TrainingConfig
from ldm_ae.training.gradients import adaptive_weight, last_layer_gradients, output_gradients
from ldm_ae.training.requirements import check_capabilities, fit_images
from ldm_ae.training.step_parts import Logs, MicroBatch, Reconstructed, StepParts, forward
from ldm_ae.training.steps import discriminator_loss, scheduled_weights, surrogate_loss
from ldm_ae.training.training_pass import TrainingPass


@dataclass(frozen=True, kw_only=True)
class GeneratorLoss:
    """The autoencoder's loss on a batch."""

    loss: Tensor
    """Scalar: the whole objective. Its gradients reach the autoencoder, the regularizer and the log-variance alone."""
    target: Tensor
    """(B, 3, H, W) in [-1, 1], detached."""
    reconstructions: Tensor
    """(B, 3, H, W), detached, not clamped."""
    posterior: Posterior
    logs: Logs
    """Scalars of the terms, detached: `rec_loss`, `perceptual_loss`, `kl_loss`, `generator_loss`, ..."""
    batch: MicroBatch
    """The inputs with the seeds of their random numbers."""


@dataclass(frozen=True, kw_only=True)
class DiscriminatorLoss:
    """The discriminator's loss on a batch."""

    loss: Tensor
    """Scalar. Its gradients reach the discriminator alone."""
    logs: Logs
    """Scalars, detached: `discriminator_loss`, `logits_real`, `logits_fake`, `discriminator_accuracy`."""


class TrainingLosses(nn.Module):
    """An autoencoder with the networks and weights of its objective, for a loop of the caller's own.

    Moving it (`to`, `train`) moves all networks. The precision is that of the caller's `torch.autocast`; with a
    `GradScaler`, gradients between the networks are not scaled. The adaptive weight is measured on each batch given,
    over all processes of `torch.distributed`.

    Args:
        autoencoder: The model, with the parameters to train.
        objective: The losses and their weights.
        discriminator: None for training without an adversarial loss.
        regularizer: The module between encoder and decoder; none by default.

    Raises:
        UserError: the objective needs a last layer that the model does not have or does not train, or a network is for
            other images.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        objective: ObjectiveConfig | None = None,
        *,
        discriminator: Discriminator | None = None,
        regularizer: Regularizer | None = None,
    ):
        super().__init__()
        config = ObjectiveConfig() if objective is None else objective
        fit_images(autoencoder, config, discriminator, regularizer)
        check_capabilities(autoencoder, config, discriminator, TrainingConfig(), regularizer)
        if regularizer is not None:
            regularizer.prepare(autoencoder)
        self.training_pass = TrainingPass(autoencoder, regularizer)
        self.objective = Objective(config, autoencoder.pixel_spec)
        self.discriminator = discriminator
        self._images_are_checked = False

    @property
    def autoencoder(self) -> Autoencoder:
        """The model."""
        return self.training_pass.autoencoder

    def generator_parameters(self) -> Iterator[nn.Parameter]:
        """Return the trainable parameters of the autoencoder, the regularizer and the objective."""
        modules = (self.training_pass, self.objective)
        return (p for module in modules for p in module.parameters() if p.requires_grad)

    def discriminator_parameters(self) -> Iterator[nn.Parameter]:
        """Return the discriminator's trainable parameters; none without one."""
        return iter(()) if self.discriminator is None else self.discriminator.learning_parameters()

    def generator_loss(self, pixel_values: Tensor, step: int) -> GeneratorLoss:
        """Return the autoencoder's loss, with its graph.

        Args:
            pixel_values: (B, 3, H, W) in [-1, 1], on the networks' device. The values of the first batch are checked.
            step: Number of updates of the autoencoder so far; the schedules of the objective count them. What all
                images of a step share, such as the size that a regularizer gives them, is a function of it.

        Raises:
            UserError: other images, or a regularization weight of a term that the model does not have.
        """
        self.autoencoder.require_images(pixel_values)
        if not self._images_are_checked:
            self.autoencoder.pixel_spec.require_range(pixel_values)
            self._images_are_checked = True
        batch = self._batch(pixel_values, step)
        parts, config = self._parts(), self.objective.config
        output = forward(self.training_pass, batch, cut=bool(parts.adaptive_terms))
        gan_weight: float | Tensor = 0.0 if self.discriminator is None else config.gan_weight_at(step)
        at_output = output_gradients(parts, batch, output, bool(gan_weight > 0))
        logs = dict(at_output.logs)
        if at_output.gan is not None and config.adaptive_gan_weight:
            logs["adaptive_weight"] = adaptive_weight(
                parts, [last_layer_gradients(parts, output.reconstructions, at_output)]
            )
            gan_weight = gan_weight * logs["adaptive_weight"]
        decoder, factors = None, {}
        if parts.adaptive_terms:
            decoder, at_encoder = backward_to_encoder(parts, output, at_output, gan_weight)
            factors = adaptive_factors(parts, [at_encoder])
            logs |= {f"{name}_adaptive_weight": factor for name, factor in factors.items()}
        logs |= scheduled_weights(self.objective, step, output.target.device)
        surrogate, regularization, terms = surrogate_loss(
            self.objective, output, at_output, gan_weight, step, decoder, factors
        )
        value = logs["nll_loss"] + regularization.detach() + sum(more.nll for more in at_output.further)
        if at_output.gan is not None:
            value = value + gan_weight * logs["generator_loss"]
        return GeneratorLoss(
            loss=surrogate + (value - surrogate.detach()),
            target=output.target.detach(),
            reconstructions=output.reconstructions.detach(),
            posterior=output.posterior,
            logs=logs | {f"{name}_loss": term.detach().mean() for name, term in terms.items()},
            batch=batch,
        )

    def discriminator_loss(self, generator: GeneratorLoss, step: int) -> DiscriminatorLoss | None:
        """Return the discriminator's loss on the same batch, with its graph; None before it has started.

        Args:
            generator: The result of `generator_loss`.
            step: Number of updates of the autoencoder before that call.
        """
        if self.discriminator is None or step < self.objective.config.discriminator_start:
            return None
        result = Reconstructed(generator.target, generator.reconstructions)
        loss, logs = discriminator_loss(self._parts(), generator.batch, result, step)
        return DiscriminatorLoss(loss=loss, logs=logs)

    @torch.no_grad()
    def learn(self, output: GeneratorLoss | DiscriminatorLoss) -> Logs:
        """Update what learns without gradients: codes and their counts, moving averages of logits.

        Call it after `backward` and before the optimizer's step.

        Returns:
            Scalars to log.
        """
        if isinstance(output, GeneratorLoss):
            return self.training_pass.learn([output.posterior])
        assert self.discriminator is not None
        self.discriminator.learn(
            *_mean_over_processes(torch.stack([output.logs["logits_real"], output.logs["logits_fake"]]))
        )
        return {}

    def _batch(self, pixel_values: Tensor, step: int) -> MicroBatch:
        spec, count = self.autoencoder.latent_spec, len(pixel_values)
        size = spec.latent_size(*pixel_values.shape[-2:])
        noise = torch.randn(count, spec.channels, *size, device=pixel_values.device)
        return MicroBatch(pixel_values, noise, tuple(torch.randint(2**62, (count,)).tolist()), step_seed=step)

    def _parts(self) -> StepParts:
        caller: Any = _Caller()
        pair = None if self.discriminator is None else DiscriminatorPass(self.discriminator)
        return StepParts(caller, self.training_pass, self.objective, pair)


class _Caller:
    """The caller's precision and processes, in the place of an Accelerator."""

    scaler = None

    def autocast(self) -> AbstractContextManager[None]:
        """Leave autocast as it is."""
        return nullcontext()

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        """Return the mean over processes."""
        assert reduction == "mean"
        return _mean_over_processes(tensor)


def _mean_over_processes(tensor: Tensor) -> Tensor:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return tensor
    total = tensor.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()
