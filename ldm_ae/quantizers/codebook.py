"""Tables of codes to which latents are compared, with k-means at the start and restarts of dead codes."""

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
    """Measures that keep a table of codes in use. Results depend only on the latents, the step and `seed`."""

    kmeans_iterations: int = 0
    """Number of k-means iterations over the latents of the first step, whose centers become the codes; 0 keeps random
    codes."""
    restart_below: float = 0.0
    """Replace a code by a random latent of the step if the moving average of its fraction of all latents is below this
    multiple of 1 / codebook_size; 0 disables this. With 0.01 it happens after about 460 steps without use."""
    usage_decay: float = 0.99
    """Decay of that moving average."""
    seed: int = 0
    """Seed of k-means and of the random replacements."""

    def __post_init__(self) -> None:
        if self.kmeans_iterations < 0 or not 0 <= self.restart_below < 1 or not 0 <= self.usage_decay < 1:
            raise UserError("care: kmeans_iterations must be at least 0, restart_below and usage_decay in [0, 1)")


class NearestCode(Quantizer):
    """Base of the quantizers that choose the nearest row of a table."""

    def __init__(self, codebook_size: int, codebook_dim: int):
        super().__init__()
        check_table(codebook_size, codebook_dim)
        self.codebook_size, self.codebook_dim = codebook_size, codebook_dim

    @abc.abstractmethod
    def table(self) -> Tensor:
        """Return the table (K, D) float32 of codes, which are compared with latents and replace them."""

    def features(self, rows: Tensor) -> Tensor:
        """Return the features of latent vectors (N, D) that are compared and coded; by default the vectors."""
        return rows

    @abc.abstractmethod
    def losses(self, features: Tensor, chosen: Tensor, table: Tensor, images: int) -> dict[str, Tensor]:
        """Return the terms of features and their codes, (N, D) each."""

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

    The state of `care` is in buffers, and only if it is enabled: without it the state is the table alone.
    """

    embedding: nn.Module
    usage_share: Tensor | None
    """Running fraction of all latents that chose each code, times K, (K,) float32."""
    steps: Tensor | None
    """Number of calls of `learn`, () int64."""

    def __init__(self, codebook_size: int, codebook_dim: int, care: CodebookCare | None):
        super().__init__(codebook_size, codebook_dim)
        self.care = care or CodebookCare()
        restarts, managed = self.care.restart_below > 0, self.care.restart_below > 0 or self.care.kmeans_iterations > 0
        self.register_buffer("usage_share", torch.ones(codebook_size) if restarts else None)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64) if managed else None)

    @property
    def weight(self) -> Tensor:
        """The learned table, (K, D)."""
        weight = self.embedding.weight
        assert isinstance(weight, Tensor)
        return weight

    def table(self) -> Tensor:
        return self.weight.float()

    @property
    def awaits_codes(self) -> bool:
        return self.steps is not None and self.care.kmeans_iterations > 0 and int(self.steps) == 0

    def _learn(self, batches: Sequence[Quantized], counts: Tensor) -> None:
        if self.steps is None:
            return
        step = int(self.steps)
        # A separate stream for each step, from numbers that are the same on every process.
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
                finite = codes.isfinite().all(dim=1)  # half precision can overflow
                dead, codes = dead[: len(drawn)][finite], codes[finite]
                self.place(dead, codes, counts)
                self.usage_share[dead] = 1.0  # a new code starts at the uniform fraction
        self.steps += 1

    @torch.no_grad()
    def start_from(self, codes: Tensor) -> None:
        """Continue from codes (K, D) that were learned elsewhere."""
        self.place(torch.arange(len(codes), device=codes.device), codes, torch.ones_like(codes[:, 0]))

    def learned_rows(self, batches: Sequence[Quantized]) -> list[Tensor]:
        """Return the features (N_j, D) of each micro-batch's latents."""
        return [self.features(to_rows(batch.latents)) for batch in batches]

    def place(self, positions: Tensor, codes: Tensor, counts: Tensor) -> None:
        """Replace the codes at positions (M,) by (M, D) new ones; `counts` (K,) are the step's."""
        weight = self.weight
        weight[positions] = codes.to(weight.dtype)
        if weight.grad is not None:
            weight.grad[positions] = 0.0  # the gradient belonged to the replaced code


class CodeTable(nn.Module):
    """A table that is not a parameter, under the key that `nn.Embedding` has in a state dict."""

    weight: Tensor

    def __init__(self, weight: Tensor):
        super().__init__()
        self.register_buffer("weight", weight)


def check_table(codebook_size: int, codebook_dim: int) -> None:
    """Raise UserError unless there are at least 1 dimension and 2 codes (for a choice), and few enough to count."""
    if codebook_size < 2 or codebook_dim < 1:
        raise UserError(
            f"expected codebook_size of at least 2 and codebook_dim of at least 1, got {codebook_size}, {codebook_dim}"
        )
    if codebook_size > COUNTABLE:
        raise UserError(
            f"codebook_size={codebook_size}: a table has at most {COUNTABLE} codes; use FSQ or BSQ, which have none"
        )


def to_rows(latents: Tensor) -> Tensor:
    """Reshape (B, D, h, w) to (B h w, D)."""
    return rearrange(latents, "b d h w -> (b h w) d")


def uniform_table(codebook_size: int, codebook_dim: int) -> Tensor:
    """Return codes uniform in [-1 / K, 1 / K], the initialization of VQ-VAE, taming and diffusers."""
    return torch.empty(codebook_size, codebook_dim).uniform_(-1.0 / codebook_size, 1.0 / codebook_size)
