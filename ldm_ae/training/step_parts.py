"""What the optimization steps take: the modules, and the inputs and outputs of micro-batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from accelerate import Accelerator
from torch import Tensor, nn

from ldm_ae.core.draws import REGULARIZER, Draws
from ldm_ae.discriminators import DiscriminatorPass
from ldm_ae.losses import Objective
from ldm_ae.training.training_pass import TrainingOutput, TrainingPass

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
    def loss_scale(self) -> float:
        """The scale in fp16 that gradients have on their way through half-precision networks; else 1."""
        scaler = self.accelerator.scaler
        return 1.0 if scaler is None else float(scaler.get_scale())

    @property
    def adaptive_terms(self) -> list[str]:
        """The regularizer's terms whose weights are measured at the encoder's last layer; the graph is then cut."""
        return weighted_terms(self.plain_pass.regularizer.adaptive_terms, self.objective.config.regularization_weights)


def forward(
    training_pass: nn.Module, batch: MicroBatch, *, cut: bool = False, decoded: Sequence[Tensor] | None = None
) -> TrainingOutput:
    """Run the training pass on a micro-batch; see `TrainingPass.forward`."""
    output: TrainingOutput = training_pass(
        batch.pixel_values, batch.noise, batch.draws(REGULARIZER), cut=cut, decoded=decoded
    )
    return output


def weighted_terms(names: Iterable[str], weights: Mapping[str, float]) -> list[str]:
    """Return those of a regularizer's `adaptive_terms` that have a weight, sorted."""
    return sorted(name for name in names if weights.get(name, 0.0) > 0)


def _unwrap(module: nn.Module) -> Any:
    return module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module
