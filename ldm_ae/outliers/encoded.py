"""Images of a batch with all that scores are made of; the likelihood, which several scores share, is computed once."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.evaluation.metrics.interface import CannotScoreError, Setting
from ldm_ae.models import Posterior
from ldm_ae.representation.bound import bits_per_dimension, elbo
from ldm_ae.representation.bound.densities import has_levels, require_bound

DRAWS = 8
"""Number of draws of each posterior for the ELBO."""


class Likelihood(NamedTuple):
    """The likelihood that a model has: of images, as a bound, or of codes under a prior."""

    of_codes: bool
    unit: str
    """Unit of `Encoded.negative_log_likelihood`."""


def likelihood_kind(setting: Setting) -> Likelihood:
    """Return which likelihood the model has.

    Raises:
        CannotScoreError: It has none.
    """
    model = setting.model
    assert model is not None
    if setting.prior is not None:
        return Likelihood(of_codes=True, unit="bits per pixel")
    try:
        require_bound(model)
    except UserError as error:
        hint = "; a prior over its codes (--prior) gives their likelihood" if model.codebook is not None else ""
        raise CannotScoreError(f"{error}{hint}") from None
    return Likelihood(of_codes=False, unit="bits per dimension" if has_levels(model) else "nats per dimension")


class Encoded:
    """A batch of images, their posterior and their reconstructions, on the model's device.

    Args:
        setting: The model and the prior.
        pixel_values: (B, C, H, W) in [-1, 1].
        indices: (B,) int64, places of the images in their data set, the seeds of draws.
        posterior: The posterior of the images.
        reconstructions: (B, C, H, W), decoded from the posterior's mode and clamped to [-1, 1].
    """

    def __init__(
        self, setting: Setting, pixel_values: Tensor, indices: Tensor, posterior: Posterior, reconstructions: Tensor
    ):
        self.setting = setting
        self.pixel_values = pixel_values
        self.indices = indices
        self.posterior = posterior
        self.reconstructions = reconstructions

    @cached_property
    def negative_log_likelihood(self) -> Tensor:
        """The negative ELBO of each image divided by its number of values, or the bits of its codes under the prior
        divided by its number of pixels, (B,) float64 on the CPU, in the unit of `likelihood_kind`."""
        model, prior = self.setting.model, self.setting.prior
        assert model is not None
        if prior is not None:
            assert self.posterior.indices is not None
            return prior.prior.bits(self.posterior.indices).cpu() / self.pixel_values[0, 0].numel()
        nats = elbo(model, self.pixel_values, samples=DRAWS, seeds=self.indices).nats
        if has_levels(model):
            return bits_per_dimension(model, nats, self.pixel_values).double().cpu()
        return -nats.double().cpu() / self.pixel_values[0].numel()
