"""The interface of every quantizer.

A quantizer replaces each latent vector by one of a finite set of codes. Its forward pass does not change any state in
either mode: `learn`, which a training step calls once with all of its micro-batches, updates the parts that learn
without gradients (moving averages, restarts). So a pass may be repeated, and accumulation equals one large batch.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.quantizers.processes import sum_over_processes

COUNTABLE = 2**20
"""Largest codebook that is counted: a batch uses a tiny fraction of a larger one."""


class Quantized(NamedTuple):
    """Latents after quantization."""

    quantized: Tensor
    """Codes (B, D, h, w) float32: exactly `codes(indices)`, with a gradient for the encoder."""
    indices: Tensor
    """Indices (B, h, w) int64 in [0, codebook_size); (B, Q, h, w) for the Q levels of a residual quantizer."""
    losses: dict[str, Tensor]
    """Named terms, each (B,) float32, summed over one image's latents, as in `Posterior.regularization`."""
    statistics: dict[str, Tensor]
    """Scalars of this batch on this process: codebook_usage in (0, 1], codebook_perplexity in [1, codebook_size]."""
    latents: Tensor
    """Input of the quantizer, (B, D, h, w) float32, detached."""


class Choice(NamedTuple):
    """The result of a method's own computation; the fields are those of `Quantized`."""

    quantized: Tensor
    indices: Tensor
    losses: dict[str, Tensor]


class Quantizer(nn.Module, abc.ABC):
    """Base of all quantizers. A subclass has a docstring with its paper, and implements the four hooks below.

    All arithmetic is float32 with autocast off, so that indices do not depend on the precision around it.
    """

    codebook_size: int
    """K, the number of values of one index."""
    codebook_dim: int
    """D, the number of channels of the latents."""
    codebook_levels: int | None = None
    """Q of a residual quantizer; None where indices do not have such an axis."""
    needed_terms: frozenset[str] = frozenset()
    """Terms without which the codes do not learn."""
    straight_through: ClassVar[bool] = True
    """Whether the gradient at the quantized latents reaches the encoder unchanged; if not, the class documents it."""

    # ------------------------------------------------------------------------------------------------------- hooks

    @abc.abstractmethod
    def _quantize(self, latents: Tensor, noise: Tensor | None) -> Choice:
        """Choose codes for latents (B, D, h, w) float32, without a change of state."""

    @abc.abstractmethod
    def _lookup(self, indices: Tensor) -> Tensor:
        """Return codes S + (D,) float32 of int64 indices of shape S; a residual quantizer consumes its axis Q."""

    @property
    @abc.abstractmethod
    def init_args(self) -> dict[str, Any]:
        """Return arguments that rebuild this quantizer: JSON types, quantizers or `CodebookCare`."""

    def _learn(self, batches: Sequence[Quantized], counts: Tensor) -> None:
        """Update state without gradients; `counts` (K,) int64 are those of all processes. Do nothing by default."""

    # -------------------------------------------------------------------------------------------------- public members

    def quantize(self, latents: Tensor, *, noise: Tensor | None = None) -> Quantized:
        """Replace every latent vector by a code.

        Args:
            latents: (B, D, h, w), any float dtype.
            noise: (B, C, h, w) standard normal for any C, the samples' own randomness in training. Only methods that
                draw use it; without it they draw from torch's global generator.

        Raises:
            UserError: Latents of another shape.
        """
        if latents.ndim != 4 or latents.shape[1] != self.codebook_dim:
            raise UserError(
                f"{type(self).__name__}: latents must be (B, {self.codebook_dim}, h, w), got {tuple(latents.shape)}"
            )
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            choice = self._quantize(latents, noise)
            statistics = usage_statistics(self._histogram(choice.indices))
        return Quantized(*choice, statistics, latents.detach())

    def forward(self, latents: Tensor, *, noise: Tensor | None = None) -> Quantized:
        """Call `quantize`."""
        return self.quantize(latents, noise=noise)

    def codes(self, indices: Tensor) -> Tensor:
        """Return latents (B, D, h, w) float32 of indices (B, h, w), or (B, Q, h, w) of a residual quantizer."""
        with torch.autocast(indices.device.type, enabled=False):
            return self._lookup(indices).float().movedim(-1, 1)

    @torch.no_grad()
    def learn(self, batches: Sequence[Quantized]) -> dict[str, Tensor]:
        """Update the parts that learn without gradients, from all micro-batches of a step; every process calls it.

        Args:
            batches: This process's micro-batches, in order.

        Returns:
            The statistics of `Quantized` for the whole step over all processes.
        """
        counts = self._counts(batches)
        self._learn(batches, counts)
        return usage_statistics(counts)

    @torch.no_grad()
    def usage(self, batches: Sequence[Quantized]) -> dict[str, Tensor]:
        """Return the statistics that `learn` returns, without a change of any code."""
        return usage_statistics(self._counts(batches))

    @property
    def awaits_codes(self) -> bool:
        """Whether the next call of `learn` replaces all codes, because they are those of no data yet."""
        return False

    def _counts(self, batches: Sequence[Quantized]) -> Tensor:
        return sum_over_processes(torch.stack([self._histogram(batch.indices) for batch in batches]).sum(dim=0))

    def _histogram(self, indices: Tensor) -> Tensor:
        """Return the number of occurrences of each code, (K,) int64; (0,) for a codebook too large to count."""
        size = self.codebook_size if self.codebook_size <= COUNTABLE else 0
        counts = torch.zeros(size, dtype=torch.int64, device=indices.device)
        if size:
            flat = indices.flatten()
            counts.scatter_add_(0, flat, torch.ones_like(flat))  # unlike bincount, it does not wait for the device
        return counts


def usage_statistics(counts: Tensor) -> dict[str, Tensor]:
    """Return the fraction of codes that occur, and the perplexity exp(H) of their frequencies.

    Args:
        counts: (..., K); the result is the mean over further axes. K = 0 gives no statistics.
    """
    if counts.shape[-1] == 0:
        return {}
    fractions = counts.float() / counts.sum(dim=-1, keepdim=True)
    perplexity = torch.special.entr(fractions).sum(dim=-1).exp()
    used = (counts > 0).float().mean(dim=-1)
    return {"codebook_usage": used.mean(), "codebook_perplexity": perplexity.mean()}


def straight_through(latents: Tensor, quantized: Tensor) -> Tensor:
    """Return the values of `quantized`, bit for bit; the gradient goes to `latents` unchanged.

    Source: Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons, arXiv 1308.3432.
    """
    # latents + (quantized - latents) would round; the difference here is exactly zero.
    return quantized.detach() + (latents - latents.detach())


def soft_choice(probabilities: Tensor, indices: Tensor, table: Tensor) -> Tensor:
    """Return codes (N, D) chosen by index, differentiated as if they were a mean weighted with the probabilities.

    The value is `table[indices]` bit for bit. The gradient is that of `(hard - sg(soft) + soft) @ table`.

    Args:
        probabilities: (N, K), the soft choice.
        indices: (N,) int64, the hard choice.
        table: (K, D).
    """
    soft = probabilities @ table.detach()
    return nn.functional.embedding(indices, table) + (soft - soft.detach())


def squared_error(a: Tensor, b: Tensor, images: int) -> Tensor:
    """Return squared differences of rows (N, D), N = images * positions, summed over each image: (images,)."""
    return (a - b).square().reshape(images, -1).sum(dim=1)
