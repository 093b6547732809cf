"""A check of every network of a run on the shapes of its first step, before anything is written.

The discriminator of LDM's recipe starts at step 50,001; an image size that it rejects should not surface only there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ldm_ae.core.draws import AUGMENTATION, REGULARIZER, Draws
from ldm_ae.core.dry_run import RefusedError, dry_run, smallest_side
from ldm_ae.core.errors import UserError
from ldm_ae.discriminators import Discriminator
from ldm_ae.evaluation.metric_sets import validation_metrics
from ldm_ae.losses import ObjectiveConfig
from ldm_ae.losses.perceptual.interface import try_size
from ldm_ae.models import Autoencoder
from ldm_ae.regularizers import Regularizer
from ldm_ae.training.config import TrainingConfig
from ldm_ae.training.training_pass import TrainingPass


def check_sizes(
    model: Autoencoder, regularizer: Regularizer, objective: ObjectiveConfig, discriminator: Discriminator | None,
    training: TrainingConfig, *, resolution: int, validation: bool,
) -> None:  # fmt: skip
    """Try every network; change nothing and draw no random number.

    Args:
        model: The autoencoder.
        regularizer: The regularizer, tried with the model.
        objective: The perceptual network and the names of its terms, which are tried.
        discriminator: None for training without an adversarial loss; it is tried if it starts within the run.
        training: The batch size of one forward pass, and the length of the run.
        resolution: Side of the crops in pixels.
        validation: Whether the run scores held-out images.

    Raises:
        UserError: A network rejects such images, or a weight names a term that the model lacks.
    """
    channels = model.pixel_spec.channels
    shape = (training.batch_size, channels, resolution, resolution)
    images = f"images of {resolution}x{resolution} in batches of {training.batch_size}"
    try:
        terms = dry_run(TrainingPass(model, regularizer), _forward, [shape])
    except RefusedError as error:
        raise UserError(f"the model does not accept {images}: {error}. Change data.resolution") from error
    for name in objective.regularization_weights:
        if name not in terms:
            raise UserError(f"objective.regularization_weights: expected terms of {sorted(terms)}, got '{name}'")
    if discriminator is not None and objective.discriminator_start < training.max_steps:
        try:
            dry_run(discriminator, _judge, [shape])
        except RefusedError as error:
            why = _smallest(discriminator, _judge, shape, model, error)
            raise UserError(
                f"the discriminator ({type(discriminator).__name__}) does not accept {images}: {why}. "
                "Raise data.resolution, or give it fewer layers"
            ) from error
    if objective.perceptual is not None:
        try:
            dry_run(objective.perceptual, try_size, [shape])
        except RefusedError as error:
            why = _smallest(objective.perceptual, try_size, shape, model, error)
            raise UserError(
                f"objective.perceptual ({objective.perceptual.name}) does not accept {images}: {why}. "
                "Raise data.resolution, or set it to null"
            ) from error
    if validation:
        _try_scores(channels, resolution)


def _judge(discriminator: Discriminator, given: Sequence[Tensor]) -> Tensor:
    """Return the logits of augmented images."""
    logits: Tensor = discriminator(discriminator.augment(given[0], Draws(range(len(given[0])), AUGMENTATION)))
    return logits


def _smallest(
    network: nn.Module, call: Any, shape: tuple[int, ...], model: Autoencoder, error: RefusedError
) -> str:  # fmt: skip
    """Return the smallest images that the network and the model take, or PyTorch's reason if it is not size."""
    side = smallest_side(network, call, shape, multiple=model.latent_spec.downsample_factor)
    return str(error) if side is None else f"the minimum size is {side}x{side}"


def _forward(training_pass: TrainingPass, given: Sequence[Tensor]) -> set[str]:
    """Return the names of the posterior's and the regularizer's terms after a training pass."""
    output = training_pass(given[0], None, Draws(range(len(given[0])), REGULARIZER))
    return {*output.posterior.regularization(), *output.terms}


def _try_scores(channels: int, resolution: int) -> None:
    try:
        for metric in validation_metrics(None):
            metric.require((1, channels, resolution, resolution))
    except UserError as error:
        raise UserError(
            f"validation cannot score images of {resolution}x{resolution}: {str(error).splitlines()[0]}. "
            "Raise data.resolution, or set data.validation_images to 0"
        ) from error
