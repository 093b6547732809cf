"""Vector quantization whose codes are moving averages of the latents that chose them.

Source: van den Oord et al., arXiv 1711.00937, appendix A.1; Razavi et al., VQ-VAE-2, arXiv 1906.00446. The Laplace
smoothing of the counts is that of the reference implementation (DeepMind's Sonnet).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.quantizers.codebook import CodebookCare, CodeTable, ManagedCodebook, uniform_table
from ldm_ae.quantizers.interface import Quantized, squared_error
from ldm_ae.quantizers.processes import cluster_sums


class EMAVQ(ManagedCodebook):
    """Choice of the nearest of K codes e_i = m_i / n_i; m and n are moving averages of sums and counts, once a step.

    n_i <- decay n_i + (1 - decay) count_i, m_i likewise with the sum of the latents, and n_i is smoothed to
    (n_i + eps) / (n + K eps) n with n = sum n_i. No gradient reaches the codes.

    Terms: `commitment` beta |z - sg(e)|^2, summed over an image.

    Args:
        codebook_size: Number of codes K.
        codebook_dim: Number of channels D of a code.
        beta: Weight of the commitment inside its term.
        decay: Decay of the moving averages.
        epsilon: Smoothing term eps above.
        care: Settings of k-means and restarts; null disables both.
    """

    short_names = ("ema-vq",)

    ema_counts: Tensor
    ema_sums: Tensor

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        *,
        beta: float = 0.25,
        decay: float = 0.99,
        epsilon: float = 1e-5,
        care: CodebookCare | None = None,
    ):
        super().__init__(codebook_size, codebook_dim, care)
        if not 0 <= decay < 1:
            raise UserError(f"EMAVQ: expected decay in [0, 1), got {decay}")
        table = uniform_table(codebook_size, codebook_dim)
        self.embedding = CodeTable(table)
        self.register_buffer("ema_counts", torch.ones(codebook_size))
        self.register_buffer("ema_sums", table.clone())
        self.beta, self.decay, self.epsilon = beta, decay, epsilon

    @property
    def init_args(self) -> dict[str, Any]:
        return {
            "codebook_size": self.codebook_size, "codebook_dim": self.codebook_dim, "beta": self.beta,
            "decay": self.decay, "epsilon": self.epsilon, "care": self.care,
        }  # fmt: skip

    def losses(self, features: Tensor, chosen: Tensor, table: Tensor, images: int) -> dict[str, Tensor]:
        return {"commitment": self.beta * squared_error(features, chosen.detach(), images)}

    def _learn(self, batches: Sequence[Quantized], counts: Tensor) -> None:
        parts = self.learned_rows(batches)
        sums = cluster_sums(parts, [batch.indices.flatten() for batch in batches], self.codebook_size)
        # A latent that overflowed in half precision suspends its code's update for this step; the average stays valid.
        finite = sums.isfinite().all(dim=1)
        counts_now = torch.where(finite, counts, self.ema_counts)
        sums_now = torch.where(finite[:, None], sums, self.ema_sums).to(self.ema_sums)
        self.ema_counts.lerp_(counts_now, 1.0 - self.decay)
        self.ema_sums.lerp_(sums_now, 1.0 - self.decay)
        total = self.ema_counts.sum()
        smoothed = (self.ema_counts + self.epsilon) / (total + self.codebook_size * self.epsilon) * total
        self.weight.copy_(self.ema_sums / smoothed[:, None])
        super()._learn(batches, counts)

    def place(self, positions: Tensor, codes: Tensor, counts: Tensor) -> None:
        super().place(positions, codes, counts)
        size = counts.sum() / self.codebook_size  # the new code has the weight of an average one
        self.ema_counts[positions] = size.to(self.ema_counts)
        self.ema_sums[positions] = (codes * size).to(self.ema_sums)
