"""Comparison of the capabilities that a run requires with those that the model's class declares."""

from __future__ import annotations

from ldm_ae.core.errors import UserError
from ldm_ae.discriminators import Discriminator
from ldm_ae.losses import ObjectiveConfig
from ldm_ae.models import Autoencoder
from ldm_ae.regularizers import Regularizer
from ldm_ae.training.config import TrainingConfig
from ldm_ae.training.step_parts import weighted_terms


def check_capabilities(
    model: Autoencoder, objective: ObjectiveConfig, discriminator: Discriminator | None, training: TrainingConfig,
    regularizer: Regularizer | None = None,
) -> None:  # fmt: skip
    """Raise `UserError` that names the first option whose capability the class lacks, or a network for other images.

    Args:
        model: The model, with its trainable parameters set.
        objective: The configuration of the adaptive weight and the perceptual network.
        discriminator: None for training without an adversarial loss.
        training: The configuration of gradient checkpointing and compilation.
        regularizer: Its adaptive terms need the encoder's last layer; None for none.
    """
    network = type(model.net).__name__
    if discriminator is not None and objective.adaptive_gan_weight:
        if model.last_layer is None:
            raise UserError(
                f"objective.adaptive_gan_weight is measured at the decoder's last layer, and {network} declares none; "
                "set it to false"
            )
        if not model.last_layer.requires_grad:
            raise UserError("adaptive_gan_weight is measured at the decoder's last layer, which `trainable` excludes")
    declared = frozenset() if regularizer is None else regularizer.adaptive_terms
    for term in weighted_terms(declared, objective.regularization_weights):
        measured = f"the weight of '{term}' is measured at the encoder's last layer"
        fix = "remove it from objective.regularization_weights"
        if model.encoder_last_layer is None:
            raise UserError(f"{measured}, and {network} declares none; {fix}")
        if not model.encoder_last_layer.requires_grad:
            raise UserError(f"{measured}, which `trainable` excludes; {fix}")
    if training.gradient_checkpointing and not model.has_gradient_checkpointing:
        raise UserError(f"training.gradient_checkpointing: {network} does not support it; set it to false")
    if training.compile and not model.compilable_parts(for_training=True):
        raise UserError(f"training.compile: {network} declares no parts to compile; set it to false")
    if discriminator is not None:
        model.pixel_spec.require_match(discriminator.pixels, f"the discriminator ({discriminator.identity})")
    objective.reconstruction.check(model.pixel_spec)
    objective.perceptual_view(model.pixel_spec)


def require_weights(model: Autoencoder, regularizer: Regularizer, objective: ObjectiveConfig) -> None:
    """Raise `UserError` for a term without a weight without which a part of the model or the regularizer never learns.

    The model's trainable parameters are set.
    """
    remedies = dict.fromkeys(sorted(model.needed_terms()), "the codes do not learn; add {}: 1.0, or freeze them with "
                             "training.trainable")  # fmt: skip
    name = type(regularizer).__name__
    remedies |= dict.fromkeys(sorted(regularizer.needed_terms), f"{name} does not learn; add {{}}: 1.0")
    for term, remedy in remedies.items():
        if not objective.regularization_weights.get(term, 0.0) > 0:
            raise UserError(
                f"objective.regularization_weights has no weight for '{term}', without which {remedy.format(term)}"
            )


def fit_images(
    model: Autoencoder, objective: ObjectiveConfig, discriminator: Discriminator | None, regularizer: Regularizer | None
) -> None:
    """Make the discriminator and the regularizer fit the model's images, by channels or by the objective's view; those
    of RGB images do not change. Call it before `Regularizer.prepare` and before the weights are used or loaded.

    Raises:
        UserError: A network requires RGB images, and there is no view of the model's images.
    """
    if discriminator is not None:
        discriminator.prepare(model.pixel_spec, objective.view)
    if regularizer is not None:
        regularizer.see(objective.view)
