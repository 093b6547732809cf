"""The interface of a regularizer, which acts between encoder and decoder while an autoencoder is trained."""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

from torch import Tensor

from ldm_ae.core.draws import Draws
from ldm_ae.core.frozen import PartlyFrozen


class Regularized(NamedTuple):
    """The decoder's input, and the target of its output."""

    latents: Tensor
    """Latents to decode, (B, C, h, w)."""
    target: Tensor
    """Images with which all losses compare the reconstructions, (B, 3, H, W) in [-1, 1]."""
    terms: dict[str, Tensor] = {}  # noqa: RUF012 - the default of a NamedTuple; it is never modified
    """Named losses, (B,) float32 each, summed over one image's latents, like those of `Posterior.regularization`.
    `objective.regularization_weights` holds their weights."""


class Regularizer(PartlyFrozen, abc.ABC):
    """A change of latents, targets or both in training, which makes latents easier to learn for a diffusion model.

    It is part of DistributedDataParallel's forward pass, under autocast. Therefore it may have parameters, which the
    autoencoder's optimizer updates, and buffers; both are in checkpoints. A frozen pretrained network is a submodule
    named in `frozen`. The exported model does not include it, and validation, encoding and decoding do not use it.
    """

    @abc.abstractmethod
    def forward(self, posterior: Any, latents: Tensor, pixel_values: Tensor, draws: Draws) -> Regularized:
        """Return latents and targets of one batch, in which no sample depends on another.

        Args:
            posterior: The encoder's `ldm_ae.models.Posterior`.
            latents: (B, C, h, w), drawn from it, unscaled.
            pixel_values: (B, 3, H, W) in [-1, 1], the encoded images.
            draws: Random numbers of each sample.
        """
