"""What a regularizer is: it stands between encoder and decoder while an autoencoder is trained."""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

from torch import Tensor

from ldm_ae.core.draws import Draws
from ldm_ae.core.frozen import PartlyFrozen


class Regularized(NamedTuple):
    """What the decoder takes, and what its output is compared with."""

    latents: Tensor
    """(B, C, h, w): what is decoded."""
    target: Tensor
    """(B, 3, H, W) in [-1, 1]: the images that all losses compare the reconstructions with."""
    terms: dict[str, Tensor] = {}  # noqa: RUF012 - the default of a NamedTuple; nobody writes into it
    """Named losses, (B,) float32 each, summed over one image's latents, as those of `Posterior.regularization`.
    `objective.regularization_weights` has their weights."""


class Regularizer(PartlyFrozen, abc.ABC):
    """Changes latents, targets or both in training, to make latents that a diffusion model learns easily.

    It runs in the forward pass that DistributedDataParallel sees, under autocast. Therefore it may have parameters,
    which the autoencoder's optimizer updates, and buffers; both are in checkpoints. A pretrained network that does not
    learn is a submodule named in `frozen`. Nothing of it is part of the exported model, and validation, encoding and
    decoding do not use it.
    """

    @abc.abstractmethod
    def forward(self, posterior: Any, latents: Tensor, pixel_values: Tensor, draws: Draws) -> Regularized:
        """Latents and targets of one batch, in which no sample depends on another.

        Args:
            posterior: The encoder's `ldm_ae.models.Posterior`.
            latents: (B, C, h, w), drawn from it, unscaled.
            pixel_values: (B, 3, H, W) in [-1, 1], what was encoded.
            draws: Random numbers of each sample.
        """
