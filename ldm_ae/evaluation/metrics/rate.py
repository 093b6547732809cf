"""The rate of an image's latents in bits per pixel, by each measure that needs no other image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from ldm_ae.core.shipped import other_model
from ldm_ae.evaluation.metrics.interface import MeanMetric, ScoreInfo, Setting
from ldm_ae.models import Posterior, weights_sha256
from ldm_ae.priors import CodePrior, SavedPrior

RATE_OF_CODES = (
    "bits_per_pixel: log2(K) for every code; entropy_bits_per_pixel: entropy of the codes' frequencies over all "
    "images, the rate of an ideal code without context; prior_bits_per_pixel: -log2 of the codes' probability under "
    "the prior without class labels, the rate of an entropy coder"
)
_BITS = "bits per pixel"


class Rate(MeanMetric):
    """Mean rate of a model's latents: of a Gaussian posterior, or of codes at a fixed length and under a prior."""

    name = "rate"
    group = "rate"
    label = "Rate"
    unit = _BITS
    scores: ClassVar[Mapping[str, ScoreInfo]] = {
        "kl_bits_per_pixel": ScoreInfo(
            label="KL rate", unit=_BITS,
            explanation="KL of the posterior to N(0, 1): the cost of sending the latents."
        ),
        "bits_per_pixel": ScoreInfo(
            label="Rate", unit=_BITS, explanation="Rate of the codes at a fixed length of log2 of the codebook's size."
        ),
        "prior_bits_per_pixel": ScoreInfo(
            label="Rate under the prior", unit=_BITS,
            explanation="Rate of an entropy coder with the prior's probabilities; measure it on images that the "
            "prior was not trained on.",
        ),
    }  # fmt: skip
    compares_images = False

    def __init__(self) -> None:
        self._prior: CodePrior | None = None
        self.reset()

    def prepare(self, setting: Setting) -> None:
        """Keep the prior.

        Raises:
            UserError: the prior belongs to another model's codes.
        """
        prior = setting.prior
        if prior is not None:
            assert setting.model_hash is not None, "a prior is over the codes of a model"
            require_prior_of(prior, setting.model_hash)
        self._prior = None if prior is None else prior.prior.to(setting.device).eval()

    def update(
        self, reconstructions: Tensor, pixel_values: Tensor, posterior: Posterior | None = None
    ) -> Mapping[str, Tensor]:
        """Add a batch; only the posterior is used."""
        bits = None if posterior is None else posterior.rate()
        if posterior is None or bits is None:
            return {}
        pixels = pixel_values[0, 0].numel()
        if posterior.indices is None:
            return self.keep({"kl_bits_per_pixel": bits / pixels})
        found = {"bits_per_pixel": bits / pixels}
        if self._prior is not None:
            found["prior_bits_per_pixel"] = self._prior.bits(posterior.indices) / pixels
        return self.keep(found)


def require_prior_of(prior: SavedPrior, model_hash: str) -> None:
    """Raise UserError unless the prior is over the codes of the model with this hash."""
    if prior.model_hash != model_hash:
        raise other_model("the prior was trained on the codes of", prior.model_hash, model_hash)


def describe_prior(saved: SavedPrior | None) -> dict[str, object] | None:
    """Return a description of the prior as JSON values."""
    if saved is None:
        return None
    return {
        "name": saved.name,
        "class": type(saved.prior).__name__,
        "sha256": weights_sha256(saved.prior),
        "parameters": sum(parameter.numel() for parameter in saved.prior.parameters()),
    }
