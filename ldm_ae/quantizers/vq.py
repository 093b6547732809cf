"""Vector quantization by gradient.

Source: van den Oord et al., Neural Discrete Representation Learning, arXiv 1711.00937, equation 3: beta weights the
commitment term. taming-transformers and diffusers.VQModel weight the codebook term instead (`legacy`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ldm_ae.quantizers.codebook import CodebookCare, ManagedCodebook, uniform_table
from ldm_ae.quantizers.interface import squared_error
from ldm_ae.quantizers.regularizers import entropy_penalty, orthogonality


class VQ(ManagedCodebook):
    """Choice of the nearest of K learned codes; the gradient goes straight through to the encoder.

    Terms: `codebook` |sg(z) - e|^2 and `commitment` beta |z - sg(e)|^2, summed over an image; both enter the objective
    with weight 1. On request `orthogonality` (times D h w, so that its weight under `mean` reduction is the paper's)
    and `entropy` in nats, over softmax(-|z - e|^2 / temperature), which stores N x K numbers.

    Args:
        codebook_size: Number of codes K.
        codebook_dim: Number of channels D of a code.
        beta: Weight of the commitment inside its term.
        legacy: Whether beta weights the codebook term instead, as for the checkpoints of taming and diffusers.
        orthogonal: Whether to add the term `orthogonality`.
        entropy_temperature: Temperature of the term `entropy`; null adds no such term.
        care: Settings of k-means and restarts; null disables both.
    """

    needed_terms = frozenset({"codebook"})

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        *,
        beta: float = 0.25,
        legacy: bool = False,
        orthogonal: bool = False,
        entropy_temperature: float | None = None,
        care: CodebookCare | None = None,
    ):
        super().__init__(codebook_size, codebook_dim, care)
        self.embedding = nn.Embedding(codebook_size, codebook_dim, _weight=uniform_table(codebook_size, codebook_dim))
        self.beta, self.legacy = beta, legacy
        self.orthogonal, self.entropy_temperature = orthogonal, entropy_temperature

    @property
    def init_args(self) -> dict[str, Any]:
        return {
            "codebook_size": self.codebook_size, "codebook_dim": self.codebook_dim, "beta": self.beta,
            "legacy": self.legacy, "orthogonal": self.orthogonal, "entropy_temperature": self.entropy_temperature,
            "care": self.care,
        }  # fmt: skip

    def losses(self, features: Tensor, chosen: Tensor, table: Tensor, images: int) -> dict[str, Tensor]:
        codebook = squared_error(features.detach(), chosen, images)
        commitment = squared_error(features, chosen.detach(), images)
        if self.legacy:
            codebook = self.beta * codebook
        else:
            commitment = self.beta * commitment
        found = {"codebook": codebook, "commitment": commitment}
        if self.orthogonal:
            found["orthogonality"] = (orthogonality(table) * (features.numel() / images)).expand(images)
        if self.entropy_temperature is not None:
            # -|z - e|^2 without |z|^2, which is the same for every code.
            logits = (2.0 * features @ table.T - table.square().sum(dim=1)) / self.entropy_temperature
            found["entropy"] = entropy_penalty(logits, images, training=self.training)
        return found
