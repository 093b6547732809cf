"""A mask that keeps a random number of the first channels, so that these hold what matters most.

Source: Chen et al., DC-AE 1.5: Accelerating Diffusion Model Convergence with Structured Latent Space, arXiv 2508.00413,
section 3: the first c' channels of the latents are decoded, c' is drawn from a list, and the loss is that of the whole
image. The published models have c' in {16, 32, ..., 128} of 128 channels. Their code (github.com/dc-ai-projects/DC-Gen)
computes the first c' channels alone, in the encoder's last layer and the decoder's first; zeros in the other channels
give the same output and gradients. It draws c' for a batch, on each process another one; here each sample has its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_ae.core.draws import Draws
from ldm_ae.core.errors import UserError
from ldm_ae.models import Autoencoder, Posterior
from ldm_ae.regularizers.interface import Regularized, Regularizer

_PARTS = 8


class ChannelPrefixMask(Regularizer):
    """Sets all channels after the first c' to 0, with c' drawn from a list for each sample.

    A decoder for all channels is trained afterwards without the mask, with `training.trainable` for the decoder alone.

    Args:
        channels: The numbers of channels to draw from; null for every eighth of the model's channels.
    """

    short_names = ("channel-prefix-mask", "prefix-mask")

    def __init__(self, *, channels: tuple[int, ...] | None = None):
        super().__init__()
        if channels is not None and (not channels or min(channels) < 1):
            raise UserError(f"ChannelPrefixMask: expected channels of at least 1, got {list(channels)}")
        self.channels = None if channels is None else tuple(channels)

    def prepare(self, model: Autoencoder) -> None:
        total = model.latent_spec.channels
        if self.channels is not None and max(self.channels) > total:
            raise UserError(f"ChannelPrefixMask: expected channels of at most {total}, got {list(self.channels)}")

    def forward(self, posterior: Posterior, latents: Tensor, pixel_values: Tensor, draws: Draws) -> Regularized:  # noqa: ARG002
        total = latents.shape[1]
        eighths = sorted({-(-total * part // _PARTS) for part in range(1, _PARTS + 1)})
        choices = torch.tensor(self.channels or eighths)
        kept = choices[draws.integers(0, len(choices), 1, 1, 1)]  # (B, 1, 1, 1)
        mask = torch.arange(total).view(1, -1, 1, 1) < kept
        return Regularized(latents * mask.to(latents), pixel_values)
