"""The networks of a run, prepared for its steps: trainable parameters, devices, memory layouts, compilation."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldm_ae.core.frozen import FrozenNetwork
from ldm_ae.core.precision import Numerics, Placement, choose_convolutions, place
from ldm_ae.discriminators import Discriminator, DiscriminatorPass
from ldm_ae.losses import Objective
from ldm_ae.models import Autoencoder
from ldm_ae.models.trainable import set_trainable
from ldm_ae.regularizers import Regularizer
from ldm_ae.training.averages.averages import Averages
from ldm_ae.training.checkpoints.snapshot import AVERAGED
from ldm_ae.training.config import TrainingConfig
from ldm_ae.training.requirements import check_capabilities
from ldm_ae.training.step_parts import StepParts, weighted_terms
from ldm_ae.training.training_pass import TrainingPass


class Networks:
    """The networks of a run, set up in place; the steps take `parts`.

    Args:
        autoencoder: The model, in float32.
        regularizer: The module between its encoder and decoder.
        objective: The generator's losses.
        discriminator: None for training without an adversarial loss.
        accelerator: Devices and processes.
        numerics: Precision and memory layout.
        config: The trainable parameters, weight averaging, compilation.
        optimizer_averages: Whether the generator's optimizer averages the weights itself.

    Raises:
        UserError: The configuration needs a capability that the autoencoder's class does not declare.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        regularizer: Regularizer,
        objective: Objective,
        discriminator: Discriminator | None,
        *,
        accelerator: Accelerator,
        numerics: Numerics,
        config: TrainingConfig,
        optimizer_averages: bool = False,
    ):
        device = accelerator.device

        # The trainable parameters and their averages.
        set_trainable(autoencoder, config.trainable)
        check_capabilities(autoencoder, objective.config, discriminator, config, regularizer)
        self.autoencoder, self.regularizer = autoencoder.train(), regularizer.train()
        self.averages = Averages(autoencoder, config, optimizer_averages=optimizer_averages)
        if config.gradient_checkpointing:
            autoencoder.enable_gradient_checkpointing()
        self.discriminator = _synchronized(discriminator, accelerator)

        # Devices, memory layouts, convolutions, compilation.
        plain = Placement(numerics.layout)
        place(autoencoder, device, numerics.placement)
        place(regularizer, device, numerics.placement)
        for network in regularizer.modules():
            if isinstance(network, FrozenNetwork):
                network.set_precision(numerics.dtype)
        if self.discriminator is not None:
            twice = self.discriminator.needs_double_backward
            place(self.discriminator, device, plain if twice else numerics.placement)
            # The second derivative of R1 is computed in float32, through frozen networks too.
            for network in (module for module in self.discriminator.modules() if isinstance(module, FrozenNetwork)):
                network.set_precision(torch.float32 if twice else numerics.dtype)
        if self.averages.model is not None:
            place(self.averages.model, device, plain)
        self.averages.begin()
        if config.compile:
            measured = weighted_terms(regularizer.adaptive_terms, objective.config.regularization_weights)
            apart = autoencoder.encoder_last_layer if measured else None
            autoencoder.compile_parts(for_training=True, apart=apart)
            if self.discriminator is not None:
                self.discriminator.compile()
        self.objective = objective.to(device)
        if objective.perceptual is not None:
            objective.perceptual.set_precision(numerics.dtype)
            choose_convolutions(objective.perceptual, numerics.placement)

        # Accelerate's wrappers.
        with warnings.catch_warnings():  # The installed Accelerate does not use torch 2.15's new name for it.
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
            training_pass = accelerator.prepare_model(TrainingPass(autoencoder, regularizer))
            pair = (
                None if self.discriminator is None else accelerator.prepare_model(DiscriminatorPass(self.discriminator))
            )
        self.parts = StepParts(accelerator, training_pass, self.objective, pair)

    def generator_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that the generator's optimizer updates, by name: the network's names are diffusers'."""
        found = {name.removeprefix("net."): parameter for name, parameter in self.autoencoder.named_parameters()}
        for prefix, module in (("objective", self.objective), ("regularizer", self.regularizer)):
            found |= {f"{prefix}.{name}": parameter for name, parameter in module.named_parameters()}
        return {name: parameter for name, parameter in found.items() if parameter.requires_grad}

    def discriminator_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that the discriminator's optimizer updates, by name; none without a discriminator."""
        if self.discriminator is None:
            return {}
        learning = {id(parameter) for parameter in self.discriminator.learning_parameters()}
        found: dict[str, nn.Parameter] = {}
        for part, module in self.discriminator.saved_parts().items():
            prefix = "" if part == "discriminator" else f"{part}."  # names do not change when aids are added
            found |= {f"{prefix}{name}": p for name, p in module.named_parameters() if id(p) in learning}
        return found

    def changed_early(self) -> Iterator[Tensor]:
        """Yield the tensors that a step changes before its optimizers do: codebooks, running statistics, averages."""
        yield from self.autoencoder.learned_parameters()
        yield from self.autoencoder.buffers()
        yield from self.regularizer.learning_buffers()
        if self.discriminator is not None:
            yield from self.discriminator.learning_buffers()

    def models(self) -> dict[str, Autoencoder]:
        """Return the autoencoders that a checkpoint holds, by name."""
        averaged = self.averages.model
        return {"model": self.autoencoder} | ({} if averaged is None else {AVERAGED: averaged})

    def others(self) -> dict[str, nn.Module]:
        """Return the other modules that a checkpoint holds, by name; their state dicts hold the learned tensors."""
        found: dict[str, nn.Module] = {"objective": self.objective, "regularizer": self.regularizer}
        return found if self.discriminator is None else found | self.discriminator.saved_parts()


def _synchronized(discriminator: Discriminator | None, accelerator: Accelerator) -> Discriminator | None:
    """Return it with batch normalization over all processes. On CPUs torch has none, and that of other devices has no
    second derivative: then each process uses its own."""
    if discriminator is None or discriminator.needs_double_backward:
        return discriminator
    if accelerator.num_processes == 1 or accelerator.device.type == "cpu":
        return discriminator
    return nn.SyncBatchNorm.convert_sync_batchnorm(discriminator)
