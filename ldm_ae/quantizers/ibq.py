"""Index backpropagation quantization: every code learns at every step, through the softmax over all of them.

Source: Shi et al., Taming Scalable Visual Tokenizer for Autoregressive Image Generation (IBQ), arXiv 2412.02692,
section 3.2.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm_ae.quantizers.codebook import check_table, to_rows, uniform_table
from ldm_ae.quantizers.interface import Choice, Quantizer, soft_choice, squared_error
from ldm_ae.quantizers.regularizers import entropy_penalty


class IBQ(Quantizer):
    """Choice of the code with the largest inner product; encoder and codes get the gradient of softmax(z E^T) E.

    The method requires N x K stored numbers for the backward pass.

    Terms, summed over an image: `quantization` |z - q|^2, with q's gradient through the softmax; `codebook`
    beta |sg(z) - e|^2 and `commitment` |z - sg(e)|^2, where the published code has beta on the codebook's side; an
    optional term is `entropy` in nats, of softmax(z E^T / temperature).

    Args:
        codebook_size: Number of codes K.
        codebook_dim: Number of channels D of a code.
        beta: Weight of the codebook inside its term.
        entropy_temperature: Temperature of the term `entropy`; null adds no such term.
    """

    straight_through: ClassVar[bool] = False

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        *,
        beta: float = 0.25,
        entropy_temperature: float | None = None,
    ):
        super().__init__()
        check_table(codebook_size, codebook_dim)
        self.codebook_size, self.codebook_dim = codebook_size, codebook_dim
        self.embedding = nn.Embedding(codebook_size, codebook_dim, _weight=uniform_table(codebook_size, codebook_dim))
        self.beta, self.entropy_temperature = beta, entropy_temperature

    @property
    def init_args(self) -> dict[str, Any]:
        return {
            "codebook_size": self.codebook_size, "codebook_dim": self.codebook_dim, "beta": self.beta,
            "entropy_temperature": self.entropy_temperature,
        }  # fmt: skip

    def _quantize(self, latents: Tensor, noise: Tensor | None) -> Choice:
        images, _, height, _ = latents.shape
        rows, table = to_rows(latents), self.embedding.weight.float()
        logits = rows @ table.T
        indices = logits.argmax(dim=1)
        quantized = soft_choice(logits.softmax(dim=1), indices, table)
        chosen = F.embedding(indices, table)
        losses = {
            "quantization": squared_error(rows, quantized, images),
            "codebook": self.beta * squared_error(rows.detach(), chosen, images),
            "commitment": squared_error(rows, chosen.detach(), images),
        }
        if self.entropy_temperature is not None:
            losses["entropy"] = entropy_penalty(logits / self.entropy_temperature, images, training=self.training)
        return Choice(
            rearrange(quantized, "(b h w) d -> b d h w", b=images, h=height), indices.view(images, height, -1), losses
        )

    def _lookup(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.embedding.weight.float())
