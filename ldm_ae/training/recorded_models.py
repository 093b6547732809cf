"""What a run records in the configuration of its models, beside their weights."""

from __future__ import annotations

from collections.abc import Iterable

from ldm_ae.losses import Objective
from ldm_ae.models import Autoencoder
from ldm_ae.models.likelihoods import record_likelihood
from ldm_ae.models.scaling import set_scaling_of
from ldm_ae.regularizers import Regularizer


def record_training(models: Iterable[Autoencoder], regularizer: Regularizer, objective: Objective) -> None:
    """Record the scale that the regularizer determines, if any, and the likelihood with its learned scale, if any."""
    for model in models:
        if (spec := regularizer.scale(model)) is not None:
            set_scaling_of(model, spec)
        record_likelihood(model.net, objective.likelihood)
