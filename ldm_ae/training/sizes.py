"""A check of every network of a run on the shapes of its first step, before anything is written.

The discriminator of LDM's recipe starts at step 50,001; an image size that it rejects should not surface only there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from ldm_ae.core.draws import AUGMENTATION, REGULARIZER, Draws
from ldm_ae.core.dry_run import RefusedError, dry_run, smallest_side
from ldm_ae.core.errors import UserError
from ldm_ae.discriminators import Discriminator
from ldm_ae.evaluation.metric_sets import validation_metrics
from ldm_ae.images.buckets import Size
from ldm_ae.images.pixels import RGB
from ldm_ae.losses import ObjectiveConfig
from ldm_ae.losses.perceptual.interface import try_size
from ldm_ae.models import Autoencoder
from ldm_ae.regularizers import Regularizer
from ldm_ae.training.config import TrainingConfig
from ldm_ae.training.training_pass import TrainingPass

Module = TypeVar("Module", bound=nn.Module)


def check_sizes(
    model: Autoencoder, regularizer: Regularizer, objective: ObjectiveConfig, discriminator: Discriminator | None,
    training: TrainingConfig, *, sizes: Sequence[Size], resolution: int, validation: bool,
) -> None:  # fmt: skip
    """Try every network; change nothing and draw no random number.

    Args:
        model: The autoencoder.
        regularizer: The regularizer, tried with the model.
        objective: The perceptual network and the names of its terms, which are tried.
        discriminator: None for training without an adversarial loss; it is tried if it starts within the run.
        training: The batch size of one forward pass, and the length of the run.
        sizes: (height, width) of the training crops in pixels.
        resolution: Side of the validation crops and of the sample images in pixels.
        validation: Whether the run scores held-out images.

    Raises:
        UserError: A network rejects such images, or a weight names a term that the model lacks.
    """
    channels = model.pixel_spec.channels
    square = (resolution, resolution)

    def shapes(*chosen: Size) -> list[tuple[int, ...]]:
        ordered = sorted({*chosen}, key=lambda size: (min(size), size))  # those that are refused come first
        return [(training.batch_size, channels, *size) for size in ordered]

    def smaller(judged: bool) -> list[Size]:
        """Return the smallest of the sizes that the regularizer makes of each size."""
        return [min(regularizer.image_sizes(size, judged=judged), key=lambda made: (min(made), made)) for size in sizes]

    def setting(error: _RefusedSizeError) -> str:
        one_size = len(sizes) == 1 and square in sizes
        of_resolution = one_size or (error.size == square and square not in sizes)
        return "data.resolution" if of_resolution else "data.sizes or data.area"

    def origin(error: _RefusedSizeError) -> str:
        return "" if error.size in {*sizes, square} else f", which {type(regularizer).__name__} makes"

    made = smaller(False)
    try:
        if not {*made} <= {*sizes, square}:
            _try_all(TrainingPass(model), _forward, shapes(*made))
        terms = _try_all(TrainingPass(model, regularizer), _forward, shapes(*sizes, square))
    except _RefusedSizeError as error:
        raise UserError(
            f"the model does not accept {error.images}{origin(error)}: {error}. Change {setting(error)}"
        ) from error
    for name in objective.regularization_weights:
        if name not in terms:
            raise UserError(f"objective.regularization_weights: expected terms of {sorted(terms)}, got '{name}'")
    if discriminator is not None and objective.discriminator_start < training.max_steps:
        try:
            _try_all(discriminator, _judge, shapes(*sizes, *smaller(True)))
        except _RefusedSizeError as error:
            refused = f"the discriminator ({discriminator.identity}) does not accept {error.images}{origin(error)}"
            if (own := _own_words(error)) is not None:
                raise UserError(f"{refused}: {own}") from error
            why = _smallest(discriminator, _judge, model, error)
            raise UserError(f"{refused}: {why}. {_remedy(setting(error))}, or give it fewer layers") from error
    if objective.perceptual is not None:
        try:
            seen = channels if objective.perceptual_view(model.pixel_spec) is None else RGB.channels
            given = shapes(*sizes, *made, *[square] if validation else [])
            _try_all(objective.perceptual, try_size, [(count, seen, *size) for count, _, *size in given])
        except _RefusedSizeError as error:
            why = _smallest(objective.perceptual, try_size, model, error)
            raise UserError(
                f"objective.perceptual ({objective.perceptual.name}) does not accept {error.images}{origin(error)}: "
                f"{why}. {_remedy(setting(error))}, or set it to null"
            ) from error
    if validation:
        _try_scores(channels, resolution)


class _RefusedSizeError(RefusedError):
    """A network does not accept a shape among several; the text is the reason in one line."""

    def __init__(self, shape: tuple[int, ...], why: str):
        super().__init__(why)
        self.shape = shape
        self.size: Size = (shape[2], shape[3])
        self.images = f"images of {shape[2]}x{shape[3]} in batches of {shape[0]}"


def _try_all(module: Module, call: Callable[[Module, Sequence[Tensor]], Any], shapes: list[tuple[int, ...]]) -> Any:
    """Return the result of `call` for the last of these shapes; raise `_RefusedSizeError` for the first refused one."""
    try:  # one copy of the network for all shapes
        return dry_run(module, lambda copy, given: [call(copy, [images]) for images in given][-1], shapes)
    except RefusedError:
        for shape in shapes:
            try:
                dry_run(module, call, [shape])
            except RefusedError as error:
                raise _RefusedSizeError(shape, str(error)) from error
        raise


def _own_words(error: BaseException) -> str | None:
    """Return the text with which the network itself refused the images; None for an error of PyTorch."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) if isinstance(error, UserError) else None


def _remedy(setting: str) -> str:
    """Return how larger images are configured."""
    return f"Raise {setting}" if setting == "data.resolution" else f"Change {setting}"


def _judge(discriminator: Discriminator, given: Sequence[Tensor]) -> Tensor:
    """Return the logits of augmented images."""
    logits: Tensor = discriminator(discriminator.augment(given[0], Draws(range(len(given[0])), AUGMENTATION)))
    return logits


def _smallest(network: nn.Module, call: Any, model: Autoencoder, error: _RefusedSizeError) -> str:
    """Return the smallest images that the network and the model take, or PyTorch's reason if it is not size."""
    side = smallest_side(network, call, error.shape, multiple=model.latent_spec.downsample_factor)
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
