"""The interface of a regularizer, which acts between encoder and decoder while an autoencoder is trained."""

from __future__ import annotations

import abc
from typing import NamedTuple

from torch import Tensor

from ldm_ae.core.draws import Draws
from ldm_ae.core.frozen import PartlyFrozen
from ldm_ae.models import Autoencoder, Posterior


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

    keeps_scale: bool = False
    """Whether the trained model keeps its scale although its encoder changes, because its latents are those of a model
    that it was measured for."""

    adaptive_terms: frozenset[str] = frozenset()
    """Names of the terms whose weight is relative to the reconstruction: a training step multiplies it by the ratio of
    both gradients' norms at the model's `encoder_last_layer` (`ldm_ae.training.adaptive_terms`)."""

    @classmethod
    def example(cls) -> Regularizer:
        """Return an instance with random weights for tests; by default, one with the default arguments."""
        return cls()

    @property
    def identity(self) -> str:
        """What a resumed run must have in common with the run; the class's name by default."""
        return type(self).__name__

    def prepare(self, model: Autoencoder) -> None:
        """Check, and adapt to each other, the regularizer and the model, whose trainable parameters are known; the
        default does nothing. It is called once, before anything is trained or resumed.

        Raises:
            UserError: They do not fit.
        """
        del model

    def verify(self, pixel_values: Tensor) -> None:
        """Check some images (B, 3, H, W) in [-1, 1] of the data, before the training; the default does nothing.

        Raises:
            UserError: They show that the regularizer does not fit.
        """
        del pixel_values

    @abc.abstractmethod
    def forward(self, posterior: Posterior, latents: Tensor, pixel_values: Tensor, draws: Draws) -> Regularized:
        """Return latents and targets of one batch, in which no sample depends on another.

        Args:
            posterior: The encoder's posterior.
            latents: (B, C, h, w), drawn from it, unscaled.
            pixel_values: (B, 3, H, W) in [-1, 1], the encoded images.
            draws: Random numbers of each sample.
        """
