"""Tables of codes that latents are compared with, and their care: k-means at the start, restarts of dead codes."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.quantizers.interface import COUNTABLE, Choice, Quantized, Quantizer, straight_through
from ldm_ae.quantizers.kmeans import draw_positions, kmeans
from ldm_ae.quantizers.nearest import nearest_codes
from ldm_ae.quantizers.processes import GlobalRows


@dataclass(frozen=True, kw_only=True)
class CodebookCare:
    """How a table of codes is kept in use. Everything is a function of the latents, the step and `seed`."""

    kmeans_iterations: int = 0
    """Rounds of k-means over the first step's latents, which then are the first codes; 0 keeps the random ones."""
    restart_below: float = 0.0
    """Replace codes whose running share of all latents falls below this part of 1 / codebook_size by latents of the
    step, drawn at random; 0 never does. 0.01 does after about 460 steps without use."""
    usage_decay: float = 0.99
    """Of the running share."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        if self.kmeans_iterations < 0 or not 0 <= self.restart_below < 1 or not 0 <= self.usage_decay < 1:
            raise UserError("care: kmeans_iterations must be at least 0, restart_below and usage_decay in [0, 1)")


class NearestCode(Quantizer):
    """Base of the quantizers that take the nearest row of a table."""

    def __init__(self, codebook_size: int, codebook_dim: int):
        super().__init__()
        check_table(codebook_size, codebook_dim)
        self.codebook_size, self.codebook_dim = codebook_size, codebook_dim

    @abc.abstractmethod
    def table(self) -> Tensor:
        """(K, D) float32: what latents are compared with and replaced by."""

    def features(self, rows: Tensor) -> Tensor:
        """What of latent vectors (N, D) is compared and coded; themselves by default."""
        return rows

    @abc.abstractmethod
    def losses(self, features: Tensor, chosen: Tensor, table: Tensor, images: int) -> dict[str, Tensor]:
        """Terms of features and their codes, (N, D) each."""

    def _quantize(self, latents: Tensor, noise: Tensor | None) -> Choice:
        images, _, height, _ = latents.shape
        features, table = self.features(to_rows(latents)), self.table()
        indices = nearest_codes(features, table)
        chosen = F.embedding(indices, table)
        quantized = straight_through(features, chosen)
        return Choice(
            rearrange(quantized, "(b h w) d -> b d h w", b=images, h=height),
            indices.view(images, height, -1),
            self.losses(features, chosen, table, images),
        )

    def _lookup(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.table())


class ManagedCodebook(NearestCode):
    """Base of the quantizers whose table is learned code by code. A subclass sets `embedding`, with a `weight`.

    What `care` remembers is in buffers, and only if it is asked for: without it the state is the table alone.
    """

    embedding: nn.Module
    usage_share: Tensor | None
    """(K,) float32: running share of all latents, times K."""
    steps: Tensor | None
    """() int64: calls of `learn`."""

    def __init__(self, codebook_size: int, codebook_dim: int, care: CodebookCare | None):
        super().__init__(codebook_size, codebook_dim)
        self.care = care or CodebookCare()
        restarts, cared = self.care.restart_below > 0, self.care.restart_below > 0 or self.care.kmeans_iterations > 0
        self.register_buffer("usage_share", torch.ones(codebook_size) if restarts else None)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64) if cared else None)

    @property
    def weight(self) -> Tensor:
        """(K, D): the table as it is learned."""
        weight = self.embedding.weight
        assert isinstance(weight, Tensor)
        return weight

    def table(self) -> Tensor:
        return self.weight.float()

    def _learn(self, batches: Sequence[Quantized], counts: Tensor) -> None:
        if self.steps is None:
            return
        step = int(self.steps)
        # A stream of its own for each step, from numbers that every process knows.
        seed = self.care.seed * 1_000_003 + step
        if step == 0 and self.care.kmeans_iterations:
            parts = self.learned_rows(batches)
            centers = kmeans(parts, self.codebook_size, iterations=self.care.kmeans_iterations, seed=seed)
            self.place(torch.arange(len(centers), device=centers.device), centers, counts)
        elif self.usage_share is not None:
            self.usage_share.lerp_(self.codebook_size * counts / counts.sum(), 1.0 - self.care.usage_decay)
            dead = (self.usage_share < self.care.restart_below).nonzero().flatten()
            if len(dead):
                rows = GlobalRows(self.learned_rows(batches))
                drawn = draw_positions(rows.total, len(dead), seed).to(dead.device)
                codes = rows.take(drawn)
                finite = codes.isfinite().all(dim=1)  # half precision overflows now and then
                dead, codes = dead[: len(drawn)][finite], codes[finite]
                self.place(dead, codes, counts)
                self.usage_share[dead] = 1.0  # a new code has as long as the others had
        self.steps += 1

    @torch.no_grad()
    def start_from(self, codes: Tensor) -> None:
        """Go on from codes (K, D) that were learned elsewhere."""
        self.place(torch.arange(len(codes), device=codes.device), codes, torch.ones_like(codes[:, 0]))

    def learned_rows(self, batches: Sequence[Quantized]) -> list[Tensor]:
        """Features (N_j, D) of each micro-batch's latents."""
        return [self.features(to_rows(batch.latents)) for batch in batches]

    def place(self, positions: Tensor, codes: Tensor, counts: Tensor) -> None:
        """Replace the codes at (M,) positions by (M, D) ones; `counts` (K,) are the step's."""
        weight = self.weight
        weight[positions] = codes.to(weight.dtype)
        if weight.grad is not None:
            weight.grad[positions] = 0.0  # it belonged to the code that was there before


class CodeTable(nn.Module):
    """A table that is no parameter, under the key that `nn.Embedding` has in a state dict."""

    weight: Tensor

    def __init__(self, weight: Tensor):
        super().__init__()
        self.register_buffer("weight", weight)


def check_table(codebook_size: int, codebook_dim: int) -> None:
    """UserError unless there are at least 1 dimension and 2 codes, for a choice, and few enough codes to count."""
    if codebook_size < 2 or codebook_dim < 1:
        raise UserError(f"codebook_size={codebook_size} must be at least 2 and codebook_dim={codebook_dim} at least 1")
    if codebook_size > COUNTABLE:
        raise UserError(f"codebook_size={codebook_size}: a table has at most {COUNTABLE} codes; FSQ and BSQ need none")


def to_rows(latents: Tensor) -> Tensor:
    """(B, D, h, w) -> (B h w, D)."""
    return rearrange(latents, "b d h w -> (b h w) d")


def uniform_table(codebook_size: int, codebook_dim: int) -> Tensor:
    """Codes uniform in [-1 / K, 1 / K], where VQ-VAE, taming and diffusers start."""
    return torch.empty(codebook_size, codebook_dim).uniform_(-1.0 / codebook_size, 1.0 / codebook_size)
