"""Quantization by a draw from a categorical distribution, relaxed with Gumbel noise.

Source: Jang et al., Categorical Reparameterization with Gumbel-Softmax, arXiv 1611.01144, equation 2 and section 2.2;
Ramesh et al., Zero-Shot Text-to-Image Generation (DALL-E), arXiv 2102.12092, appendix A.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.quantizers.codebook import check_table, to_rows
from ldm_ae.quantizers.interface import Choice, Quantized, Quantizer, soft_choice


class GumbelVQ(Quantizer):
    """A 1x1 convolution computes logits of K codes; training draws a code, evaluation chooses the most likely one.

    taming-transformers' GumbelQuantize also adds the noise at evaluation, where DALL-E's encoder chooses the most
    likely code. In training the codes are hard with the gradient of the soft ones: taming's `straight_through`.

    The gradient is that of softmax((logits + Gumbel noise) / temperature) E, to encoder and codes. The temperature
    falls geometrically from `temperature` to `final_temperature` over `temperature_steps` steps, then is constant. The
    backward pass stores N x K numbers. In training the noise is derived from the samples' own noise.

    Terms: `kl` to the uniform distribution in nats, summed over an image's positions. A published weight counts
    positions; under `mean` reduction, which divides by D h w, it becomes D times as large.

    Args:
        codebook_size: Number of codes K.
        codebook_dim: Number of channels D of a code.
        temperature: Temperature at the first step.
        final_temperature: Temperature at the last step; DALL-E's is 1 / 16.
        temperature_steps: Number of steps between them.
    """

    short_names = ("gumbel",)

    straight_through: ClassVar[bool] = False
    steps: Tensor
    """Number of calls of `learn`, () int64."""

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        *,
        temperature: float = 1.0,
        final_temperature: float = 0.0625,
        temperature_steps: int = 150_000,
    ):
        super().__init__()
        check_table(codebook_size, codebook_dim)
        if temperature <= 0 or final_temperature <= 0 or temperature_steps < 1:
            raise UserError(
                f"GumbelVQ: temperature={temperature} and final_temperature={final_temperature} must be above 0, and "
                f"temperature_steps={temperature_steps} at least 1"
            )
        self.codebook_size, self.codebook_dim = codebook_size, codebook_dim
        self.temperature, self.final_temperature = temperature, final_temperature
        self.temperature_steps = temperature_steps
        self.proj = nn.Conv2d(codebook_dim, codebook_size, 1)
        self.embedding = nn.Embedding(codebook_size, codebook_dim)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def init_args(self) -> dict[str, Any]:
        return {
            "codebook_size": self.codebook_size, "codebook_dim": self.codebook_dim, "temperature": self.temperature,
            "final_temperature": self.final_temperature, "temperature_steps": self.temperature_steps,
        }  # fmt: skip

    def current_temperature(self) -> Tensor:
        """Return the temperature at the current step, () float32."""
        progress = (self.steps / self.temperature_steps).clamp(max=1.0)
        return self.temperature * (self.final_temperature / self.temperature) ** progress

    def _quantize(self, latents: Tensor, noise: Tensor | None) -> Choice:
        images, _, height, _ = latents.shape
        logits = F.conv2d(latents, self.proj.weight.float(), self.proj.bias.float())  # type: ignore[union-attr]
        drawn = logits
        if self.training:
            drawn = (logits + gumbel_noise(logits, noise)) / self.current_temperature()
        rows = to_rows(drawn)
        indices = rows.argmax(dim=1)
        quantized = soft_choice(rows.softmax(dim=1), indices, self.embedding.weight.float())
        log_p = logits.log_softmax(dim=1)
        kl = (log_p.exp() * (log_p + math.log(self.codebook_size))).sum(dim=(1, 2, 3))
        return Choice(
            rearrange(quantized, "(b h w) d -> b d h w", b=images, h=height),
            indices.view(images, height, -1),
            {"kl": kl},
        )

    def _lookup(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.embedding.weight.float())

    def _learn(self, batches: Sequence[Quantized], counts: Tensor) -> None:
        self.steps += 1


def gumbel_noise(like: Tensor, noise: Tensor | None) -> Tensor:
    """Return standard Gumbel noise of the shape of `like` (B, K, h, w).

    With `noise` (B, ...) the noise of each sample is a function of its own row, and so independent of the process that
    draws it and of the number of draws. Without, it is drawn from torch's global generator.
    """
    if noise is None:
        return -torch.empty_like(like).exponential_().log()
    flat = noise.to(like).flatten(1)
    seeds = torch.stack([flat[:, 0], flat[:, -1]], dim=1).contiguous().view(torch.int32).to(torch.int64)
    state = _scramble(_scramble(seeds[:, :1]) ^ seeds[:, 1:])
    counter = torch.arange(like[0].numel(), device=like.device)
    random = _scramble(state ^ _scramble(counter))
    # 23 bits, and a half that excludes 0 and 1: this is the precision of float32.
    uniform = (((random >> 41) & (2**23 - 1)).float() + 0.5) / 2**23
    return -(-uniform.log()).log().view_as(like)


def _scramble(state: Tensor) -> Tensor:
    """Return SplitMix64's step and finalizer (Steele, Lea, Flood 2014) of int64, whose arithmetic wraps around."""
    state = state + (0x9E3779B97F4A7C15 - 2**64)
    state = (state ^ _shift(state, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    state = (state ^ _shift(state, 27)) * (0x94D049BB133111EB - 2**64)
    return state ^ _shift(state, 31)


def _shift(state: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros."""
    return (state >> bits) & (2 ** (64 - bits) - 1)
