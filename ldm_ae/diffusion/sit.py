"""SiT: diffusers' DiTTransformer2DModel (Peebles and Xie, arXiv 2212.09748), trained by flow matching.

Flow matching predicts n - x_0 at x_s = (1 - s) x_0 + s n (Lipman et al., arXiv 2210.02747; Liu et al., arXiv
2209.03003; Ma et al., SiT, arXiv 2401.08740).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

HEAD_WIDTH = 32
"""Channels of an attention head; the width of a network is a multiple of it."""
NO_CLASS = 1000
"""DiTPipeline's class for none; real classes are below it."""
TIMESTEPS = 1000
"""The network's time at s = 1."""


def build_sit(
    channels: int, size: int, width: int, depth: int, *, patch_size: int | None = None, classes: int = NO_CLASS
) -> Any:
    """Return a network for (B, channels, size, size) latents.

    Args:
        channels: Channels of the latents.
        size: Side of the latents.
        width: Channels of a token; a multiple of `HEAD_WIDTH`.
        depth: Transformer blocks.
        patch_size: Side of the latents' part that is one token, a divisor of `size`; None for 2 where it is, else 1.
        classes: Number of classes, whose last + 1 means none; 0 for a network without classes, whose only label is 0.
    """
    from diffusers import DiTTransformer2DModel  # takes seconds
    from diffusers.models.embeddings import LabelEmbedding

    if patch_size is None:
        patch_size = 2 if size % 2 == 0 else 1
    model: Any = DiTTransformer2DModel(
        sample_size=size, in_channels=channels, out_channels=channels, patch_size=patch_size, num_layers=depth,
        num_attention_heads=width // HEAD_WIDTH, attention_head_dim=HEAD_WIDTH, num_embeds_ada_norm=classes,
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, LabelEmbedding):
            module.dropout_prob = 0.0  # Each block would drop different labels; the loop drops them once.
    return model


def flow(latents: Tensor, noise: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return noisy latents (B, C, h, w) at levels `sigma`, (B,) in [0, 1], the network's times, and its target."""
    level = sigma.view(-1, 1, 1, 1)
    return (1 - level) * latents + level * noise, sigma * TIMESTEPS, noise - latents
