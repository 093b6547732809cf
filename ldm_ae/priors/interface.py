"""The interface of every prior over codes: a distribution of an image's indices, one code given those before it.

The codes of an image have one order everywhere, the sequence: raster order, from left to right and from top to bottom,
and at each place the levels of a residual quantizer, the coarsest first; a prior of several maps has its own order. Its
length is L.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_ae.core.errors import UserError

LARGEST_CODEBOOK = 2**18
"""Largest codebook of a prior: a logit per code is too expensive for larger codebooks (LFQ, BSQ)."""

Steps = Generator[Tensor, Tensor, None]
"""Generator that yields logits (B, K) of the next code, and receives the chosen codes (B,) int64."""


class CodePrior(nn.Module, abc.ABC):
    """Base of all priors. A subclass has a docstring with its paper, and implements the hooks below.

    Args:
        codebook_size: K.
        shape: Shape of one image's indices: (h, w), or (Q, h, w) with Q levels of residual quantization, or maps packed
            to Q codes at each place.
        classes: Number of classes to condition on; 0 for none. Images without a class are always allowed.
        width: Number of channels.
        depth: Number of layers.
        dropout: Fraction of activations dropped in training.

    Raises:
        UserError: Sizes that are not valid for a prior.
    """

    def __init__(
        self, *, codebook_size: int, shape: Sequence[int], classes: int, width: int, depth: int, dropout: float
    ):
        super().__init__()
        _check("codebook_size", codebook_size, 2, LARGEST_CODEBOOK)
        if len(shape) not in (2, 3):
            raise UserError(f"the indices of an image must be (h, w) or (Q, h, w), got {tuple(shape)}")
        for side in shape:
            _check("a side of shape", side, 1, 2**12)
        _check("classes", classes, 0, 2**20)
        _check("width", width, 1, 2**14)
        _check("depth", depth, 1, 2**9)
        if not 0.0 <= dropout < 1.0:
            raise UserError(f"dropout is {dropout}; it must be at least 0 and below 1")
        self.codebook_size = codebook_size
        self.shape = tuple(shape)
        self.classes = classes
        self.levels = shape[0] if len(shape) == 3 else 1
        self.init_args: dict[str, Any] = {
            "codebook_size": codebook_size, "shape": list(shape), "classes": classes, "width": width, "depth": depth,
            "dropout": dropout,
        }  # fmt: skip
        """Arguments that rebuild this prior, of JSON types."""

    # ------------------------------------------------------------------------------------------------------- hooks

    @abc.abstractmethod
    def embed(self, sequence: Tensor) -> Tensor:
        """Return vectors (B, L, D) of codes (B, L) int64, each a function of its own code and place only."""

    @abc.abstractmethod
    def logits(self, embedded: Tensor, classes: Tensor) -> Tensor:
        """Return logits (B, L, K) of every code given those before it.

        Args:
            embedded: (B, L, D), the output of `embed`.
            classes: (B,) int64 in [0, classes], where the last value means no class.
        """

    @abc.abstractmethod
    def steps(self, classes: Tensor) -> Steps:
        """Yield the same logits place by place, L times, each as soon as the codes before it are given."""

    # -------------------------------------------------------------------------------------------------- public members

    def forward(self, indices: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return logits (B, L, K) of every code given those before it in the sequence.

        Args:
            indices: (B, *shape) int64 in [0, K).
            labels: (B,) int64 classes, -1 for none; None if no image has a class.

        Raises:
            UserError: Indices of another shape, or an invalid class.
        """
        return self.logits(self.embed(self.sequence(indices)), self._classes(labels, len(indices)))

    @torch.no_grad()
    def bits(self, indices: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the images' cost in bits, -log2 of their probability, (B,) float64; arguments as in `forward`."""
        return self.bits_of_codes(indices, labels).sum(dim=1)

    @torch.no_grad()
    def bits_of_codes(self, indices: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the cost in bits of every code in the sequence, (B, L) float64; arguments as in `forward`."""
        logits = self(indices, labels).double().flatten(0, 1)
        nats = F.cross_entropy(logits, self.sequence(indices).flatten(), reduction="none")
        return nats.view(len(indices), -1) / math.log(2.0)

    @torch.no_grad()
    def walk(self, choose: Callable[[Tensor], Tensor], *, count: int = 1, labels: Tensor | None = None) -> Tensor:
        """Fill images code by code, in the order of the sequence.

        Args:
            choose: Returns codes (B,) int64 for logits (B, K) of the next code.
            count: B.
            labels: (B,) int64, as in `forward`.

        Returns:
            Indices (B, *shape) int64.
        """
        steps = self.steps(self._classes(labels, count))
        chosen = [choose(next(steps))]
        for _ in range(1, math.prod(self.shape)):
            chosen.append(choose(steps.send(chosen[-1])))
        steps.close()
        return self.images(torch.stack(chosen, dim=1))

    def sample(self, count: int, labels: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw indices (count, *shape) int64 of images from the distribution.

        Args:
            count: Number of images.
            labels: (count,) int64, as in `forward`.
            generator: Generator on the device of the prior; torch's global one by default.
        """
        return self.walk(
            lambda logits: torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0],
            count=count, labels=labels,
        )  # fmt: skip

    def sequence(self, indices: Tensor) -> Tensor:
        """Return indices (B, *shape) in the order of the sequence, (B, L); UserError if they have another shape."""
        self._require_shape(indices)
        return indices.movedim(1, -1).flatten(1) if len(self.shape) == 3 else indices.flatten(1)

    def _require_shape(self, indices: Tensor) -> None:
        if tuple(indices.shape[1:]) != self.shape:
            raise UserError(
                f"the prior needs images with {self.shape} codes, got {tuple(indices.shape[1:])}; give "
                "images of the size that it was trained at"
            )

    def images(self, sequence: Tensor) -> Tensor:
        """Reshape (B, L) to (B, *shape): the inverse of `sequence`."""
        if len(self.shape) == 2:
            return sequence.unflatten(1, self.shape)
        return sequence.unflatten(1, (*self.shape[1:], self.levels)).movedim(3, 1)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def _classes(self, labels: Tensor | None, count: int) -> Tensor:
        """Return classes (B,) int64 in [0, classes], where the last value means no class."""
        if labels is None:
            return torch.full((count,), self.classes, device=self.device)
        if labels.shape != (count,):
            raise UserError(f"labels must be ({count},), got {tuple(labels.shape)}")
        if count and int(labels.max()) >= self.classes:
            raise UserError(f"class {int(labels.max())} is unknown; the prior was trained with {self.classes} classes")
        return torch.where(labels < 0, self.classes, labels).to(self.device)


def _check(name: str, value: int, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise UserError(f"{name} is {value}; a prior needs a whole number from {low} to {high}")
