"""Vector quantization on the unit sphere, designed for codes of few dimensions.

Source: Yu et al., Vector-quantized Image Modeling with Improved VQGAN (ViT-VQGAN), arXiv 2110.04627, section 3.2; Sun
et al., LlamaGen, arXiv 2406.06525, section 3.1, with 16384 codes of 8 dimensions.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ldm_ae.quantizers.codebook import CodebookCare
from ldm_ae.quantizers.vq import VQ


class CosineVQ(VQ):
    """Choice of the code with the largest cosine; latents, codes and quantized latents are normalized to length 1.

    The gradient goes straight through to the normalized latents, and from there through the normalization. Terms are
    those of `VQ`, for normalized latents and codes.

    Args:
        codebook_size: Number of codes K.
        codebook_dim: Number of channels D of a code.
        beta: Weight of the commitment inside its term.
        orthogonal: Whether to add the term `orthogonality`.
        entropy_temperature: Temperature of the term `entropy`; null adds no such term.
        care: Settings of k-means and restarts; null disables both.
    """

    short_names = ("cosine",)

    straight_through: ClassVar[bool] = False

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        *,
        beta: float = 0.25,
        orthogonal: bool = False,
        entropy_temperature: float | None = None,
        care: CodebookCare | None = None,
    ):
        super().__init__(
            codebook_size, codebook_dim, beta=beta, orthogonal=orthogonal, entropy_temperature=entropy_temperature,
            care=care,
        )  # fmt: skip
        nn.init.normal_(self.weight)  # uniform over the sphere once normalized

    @property
    def init_args(self) -> dict[str, object]:
        return {name: value for name, value in super().init_args.items() if name != "legacy"}

    def features(self, rows: Tensor) -> Tensor:
        return F.normalize(rows, dim=1)

    def table(self) -> Tensor:
        return F.normalize(super().table(), dim=1)
