"""The network of the diffusion score, equal for latents of every shape as far as that is possible, and its samples.

It is the network of `ldm_ae.diffusion.sit` without classes. The patch size is such that every model's latents become
the same number of tokens, those of images divided into 16x16 pixels, where their shape allows it. Weights start as in
DiT (Peebles and Xie, arXiv 2212.09748, its `initialize_weights`); each is a function of the seed and its name, so that
the networks of latents of different shapes share all weights but those of the first and the last layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm_ae.core.seeding import derive_seed, seeded_noise
from ldm_ae.diffusion import build_sit
from ldm_ae.training.diffusion.networks import build_scheduler, predict

PIXELS_OF_A_TOKEN = 16
"""Side in pixels of the part of an image that is one token."""
_STD = 0.02
"""Standard deviation of the weights of embeddings."""


def patch_size_of(latent_size: int, image_size: int) -> int:
    """Return the largest divisor of the latents' side with at least as many tokens as the image has 16x16 pixels; 1
    where the latents have fewer."""
    tokens = max(image_size // PIXELS_OF_A_TOKEN, 1)
    return max((patch for patch in range(1, latent_size + 1)
                if latent_size % patch == 0 and latent_size // patch >= tokens), default=1)  # fmt: skip


def build_network(channels: int, size: int, *, image_size: int, width: int, depth: int, seed: int) -> nn.Module:
    """Return a new network for latents (B, channels, size, size) of square images; its only label is 0."""
    network: nn.Module = build_sit(channels, size, width, depth, patch_size=patch_size_of(size, image_size), classes=0)
    initialize(network, seed)
    return network


@torch.no_grad()
def initialize(network: nn.Module, seed: int) -> None:
    """Initialize the weights in place; the network's output is 0 until it is trained."""
    for name, parameter in network.named_parameters():
        generator = torch.Generator().manual_seed(derive_seed("diffusion score", seed, name))
        if parameter.ndim < 2 or "norm1.linear" in name or "proj_out" in name:
            parameter.zero_()
        elif ".emb." in name:
            parameter.normal_(std=_STD, generator=generator)
        else:  # as a linear layer, also the convolution that makes the tokens
            nn.init.xavier_uniform_(parameter.flatten(1), generator=generator)


def open_network(folder: Path, device: torch.device) -> nn.Module:
    """Return a network that was saved, for inference."""
    from diffusers import DiTTransformer2DModel

    network: Any = DiTTransformer2DModel.from_pretrained(folder)
    found: nn.Module = network.to(device).eval().requires_grad_(False)
    return found


def no_label(count: int, device: torch.device) -> Tensor:
    """Return the labels (count,) int64 of a network without classes."""
    return torch.zeros(count, dtype=torch.int64, device=device)


@torch.no_grad()
def sample_latents(
    network: nn.Module,
    shape: tuple[int, int, int],
    seeds: Tensor,
    steps: int,
    device: torch.device,
    *,
    labels: Tensor | None = None,
) -> Tensor:
    """Return one sample of scaled latents for each seed, (B, C, h, w) float32.

    Args:
        network: What `build_network` returns, or another `build_sit`, trained by flow matching.
        shape: (C, h, w).
        seeds: (B,) int64, on which alone the noise of each sample depends.
        steps: Steps of DPM-Solver++ (Lu et al., arXiv 2211.01095), of second order.
        device: The network's device.
        labels: (B,) int64 on it, the class of each sample; None for a network without classes.
    """
    scheduler = build_scheduler("flow")
    scheduler.set_timesteps(steps, device=device)
    latents = seeded_noise(seeds, shape).to(device) * scheduler.init_noise_sigma
    labels = no_label(len(latents), device) if labels is None else labels
    for time in scheduler.timesteps:
        prediction = predict(network, latents, time.expand(len(latents)), labels)
        latents = scheduler.step(prediction, time, latents).prev_sample
    return latents
