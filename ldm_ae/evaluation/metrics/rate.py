"""What an image's latents cost to send, in bits per pixel, by each way of counting that needs no other image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.models import Autoencoder, Posterior, model_hash, weights_sha256
from ldm_ae.priors import SavedPrior


class Rates:
    """The rates of a model's latents.

    Args:
        model: In float32.
        prior: Over the codes of this model; moved to the device.
        device: Where the latents are.

    Raises:
        UserError: the prior is of another model's codes.
    """

    def __init__(self, model: Autoencoder, prior: SavedPrior | None, device: torch.device):
        if prior is not None and prior.model_hash != model_hash(model):
            raise UserError(
                "the prior was trained on the codes of another model (hash "
                f"{prior.model_hash[:12]}, this one's is {model_hash(model)[:12]})"
            )
        self._saved = prior
        self._prior = None if prior is None else prior.prior.to(device).eval()

    def of(self, posterior: Posterior, pixels: int) -> dict[str, Tensor]:
        """(B,) bits per pixel by the name of the score; `pixels` are those of one image."""
        bits = posterior.rate()
        if bits is None:
            return {}
        if posterior.indices is None:
            return {"kl_bits_per_pixel": bits / pixels}
        found = {"bits_per_pixel": bits / pixels}
        if self._prior is not None:
            found["prior_bits_per_pixel"] = self._prior.bits(posterior.indices) / pixels
        return found

    def describe(self) -> dict[str, object] | None:
        """Which prior, as JSON values."""
        if self._saved is None or self._prior is None:
            return None
        return {
            "name": self._saved.name,
            "class": type(self._prior).__name__,
            "sha256": weights_sha256(self._prior),
            "parameters": sum(parameter.numel() for parameter in self._prior.parameters()),
        }


def thumbnail_numbers(posterior: Posterior, latents: Tensor) -> int:
    """How many numbers of 8 bits a thumbnail may have to be about as large as an image's latents (B, C, h, w): as many
    as they are, but of codes, which are many numbers and few bits, as many bytes as they take at a fixed length."""
    bits = posterior.rate()
    if bits is None or posterior.indices is None:
        return latents[0].numel()
    return math.ceil(float(bits[0]) / 8)
