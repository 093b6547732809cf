"""Every network that a run will use, tried on the shapes of its first step before anything is written.

The discriminator of LDM's recipe starts at step 50,001; that it cannot take the images should not show there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm_ae.core.draws import AUGMENTATION, REGULARIZER, Draws
from ldm_ae.core.dry_run import RefusedError, dry_run, smallest_side
from ldm_ae.core.errors import UserError
from ldm_ae.discriminators import Discriminator
from ldm_ae.evaluation.metrics.image_quality import image_scores
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
    """Nothing is changed, and no random number is drawn.

    Args:
        model: The autoencoder.
        regularizer: Tried with the model.
        objective: Its perceptual network and the names of its terms are tried.
        discriminator: None for none; it is tried if it starts within the run.
        training: The batch size of one forward pass, and the length of the run.
        resolution: Side of the crops in pixels.
        validation: The run scores held-out images.

    Raises:
        UserError: a network cannot take such images, or the model has no term of the name of a weight.
    """
    shape = (training.batch_size, 3, resolution, resolution)
    images = f"images of {resolution}x{resolution} in batches of {training.batch_size}"
    try:
        terms = dry_run(TrainingPass(model, regularizer), _forward, [shape])
    except RefusedError as error:
        raise UserError(f"the model cannot take {images}: {error}. Change data.resolution") from error
    for name in objective.regularization_weights:
        if name not in terms:
            raise UserError(f"objective.regularization_weights: no term '{name}'; this model has {sorted(terms)}")
    if discriminator is not None and objective.discriminator_start < training.max_steps:
        try:
            dry_run(discriminator, _judge, [shape])
        except RefusedError as error:
            why = _smallest(discriminator, _judge, shape, model, error)
            raise UserError(
                f"the discriminator ({type(discriminator).__name__}) cannot take {images}: {why}. "
                "Raise data.resolution, or give it fewer layers"
            ) from error
    if objective.perceptual is not None:
        try:
            dry_run(objective.perceptual, try_size, [shape])
        except RefusedError as error:
            why = _smallest(objective.perceptual, try_size, shape, model, error)
            raise UserError(
                f"objective.perceptual ({objective.perceptual.name}) cannot take {images}: {why}. "
                "Raise data.resolution, or set it to null"
            ) from error
    if validation:
        _try_scores(resolution)


def _judge(discriminator: Discriminator, given: Sequence[Tensor]) -> Tensor:
    """Logits of augmented images."""
    logits: Tensor = discriminator(discriminator.augment(given[0], Draws(range(len(given[0])), AUGMENTATION)))
    return logits


def _smallest(
    network: nn.Module, call: Any, shape: tuple[int, ...], model: Autoencoder, error: RefusedError
) -> str:  # fmt: skip
    """The smallest images that a network takes and the model too, or PyTorch's reason if size is not the reason."""
    side = smallest_side(network, call, shape, multiple=model.latent_spec.downsample_factor)
    return str(error) if side is None else f"the smallest are {side}x{side}"


def _forward(training_pass: TrainingPass, given: Sequence[Tensor]) -> set[str]:
    """The names of the posterior's and the regularizer's terms, after a training pass."""
    output = training_pass(given[0], None, Draws(range(len(given[0])), REGULARIZER))
    return {*output.posterior.regularization(), *output.terms}


def _try_scores(resolution: int) -> None:
    pixel_values: Any = torch.linspace(-1.0, 1.0, 3 * resolution**2).view(1, 3, resolution, resolution)
    try:
        image_scores(pixel_values, pixel_values.flip(-1), None)
    except (UserError, RuntimeError) as error:
        raise UserError(
            f"validation cannot score images of {resolution}x{resolution}: {str(error).splitlines()[0]}. "
            "Raise data.resolution, or set data.validation_images to 0"
        ) from error
