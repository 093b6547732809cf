"""Vector quantization with a frozen table behind one learned linear layer, which moves all codes at once.

Source: Zhu et al., Addressing Representation Collapse in Vector Quantized Models with One Linear Layer (SimVQ), arXiv
2411.02038, equation 6.

Differences from the authors' code: its flag `legacy`, on by default there and off in the ImageNet configuration,
weights the codebook term with beta and the commitment with 1; here beta always weights the commitment. Its weights have
`embedding_proj` where ours have `projection`. It trains the generator with a non-saturating loss of fixed weight 0.1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ldm_ae.quantizers.codebook import CodeTable, NearestCode
from ldm_ae.quantizers.interface import squared_error


class SimVQ(NearestCode):
    """Choice of the nearest of the codes C W + b, with C ~ N(0, 1 / D) frozen and W, b learned.

    Terms: `codebook` |sg(z) - e|^2 and `commitment` beta |z - sg(e)|^2, summed over an image.

    Args:
        codebook_size: Number of codes K.
        codebook_dim: Number of channels D of a code.
        beta: Weight of the commitment inside its term.
    """

    needed_terms = frozenset({"codebook"})

    def __init__(self, codebook_size: int, codebook_dim: int, *, beta: float = 0.25):
        super().__init__(codebook_size, codebook_dim)
        self.embedding = CodeTable(torch.randn(codebook_size, codebook_dim) * codebook_dim**-0.5)
        self.projection = nn.Linear(codebook_dim, codebook_dim)
        self.beta = beta

    @property
    def init_args(self) -> dict[str, Any]:
        return {"codebook_size": self.codebook_size, "codebook_dim": self.codebook_dim, "beta": self.beta}

    def table(self) -> Tensor:
        return self.projection(self.embedding.weight).float()

    def losses(self, features: Tensor, chosen: Tensor, table: Tensor, images: int) -> dict[str, Tensor]:
        return {
            "codebook": squared_error(features.detach(), chosen, images),
            "commitment": self.beta * squared_error(features, chosen.detach(), images),
        }
