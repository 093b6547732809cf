"""A class-conditional diffusion model of latents in memory, as a generator of images.

The network is SiT with classes, trained by flow matching (`ldm_ae.diffusion.sit`), without dropped labels: samples
without guidance keep the variety of a class, on which the classification accuracy score depends (Ravuri and Vinyals,
arXiv 1905.10887, section 4.3).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.core.seeding import derive_seed
from ldm_ae.diffusion import HEAD_WIDTH, build_sit
from ldm_ae.models import Autoencoder
from ldm_ae.representation.encoded import in_batches
from ldm_ae.training.diffusion.networks import training_loss
from ldm_ae.training.diffusion.score_network import sample_latents
from ldm_ae.training.ema import EMA

_SMALLEST_STD = 1e-6
"""Channels that vary less are divided by this, so that constant ones stay finite."""


class ClassDiffusion:
    """A generator of images of a class: a diffusion model of the latents of images with labels, and the decoder.

    It learns draws of the posteriors, new ones in each step, whose channels are normalized to mean 0 and standard
    deviation 1. It works for latents of any square shape, also for vectors (D, 1, 1), which no pipeline of diffusers
    decodes.

    Args:
        model: The autoencoder, in eval mode.
        images: (N, C, H, W) in [-1, 1], on the model's device.
        labels: (N,) int64 from 0.
        steps: Updates of the network by AdamW.
        width: Channels of a token, a multiple of 32.
        depth: Transformer blocks.
        batch_size: Latents of a step.
        learning_rate: The largest learning rate, which falls to 0 along a cosine.
        sampling_steps: Steps of DPM-Solver++ for an image.
        seed: Seed of weights, order, noise and samples.

    Raises:
        UserError: A number is too small, a label is negative, or the latents are not square.
    """

    def __init__(
        self, model: Autoencoder, images: Tensor, labels: Tensor, *, steps: int = 3000, width: int = 128,
        depth: int = 4, batch_size: int = 128, learning_rate: float = 1e-3, sampling_steps: int = 50, seed: int = 0,
    ):  # fmt: skip
        if min(steps, depth, batch_size, sampling_steps) < 1 or width < HEAD_WIDTH or width % HEAD_WIDTH:
            raise UserError(
                f"steps, depth, batch_size and sampling_steps must be at least 1 and width a multiple of {HEAD_WIDTH}, "
                f"got {steps}, {depth}, {batch_size}, {sampling_steps} and {width}"
            )
        if int(labels.min()) < 0:
            raise UserError("a class-conditional generator needs the label of each image, and some have none")
        self._model, self._sampling_steps, self._seed, self._drawn = model, sampling_steps, seed, 0
        with torch.no_grad():
            posteriors = [model.encode(part) for part in in_batches(images)]
            means = torch.cat([posterior.mode().float() for posterior in posteriors])
            moments = [posterior.moments for posterior in posteriors if posterior.moments is not None]
            deviations = (torch.cat(moments).float().chunk(2, dim=1)[1] / 2).exp() if moments else None
        channels, height, side = means.shape[1:]
        if height != side:
            raise UserError(f"the diffusion model needs square latents, got {height}x{side}")
        self._shape = (channels, height, side)
        spread = 0.0 if deviations is None else deviations.square().mean(dim=(0, 2, 3), keepdim=True)
        self._mean = means.mean(dim=(0, 2, 3), keepdim=True)
        variance = means.var(dim=(0, 2, 3), keepdim=True, unbiased=False) + spread
        self._std = variance.sqrt().clamp(min=_SMALLEST_STD)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network: Any = build_sit(channels, side, width, depth, classes=int(labels.max()) + 1)
        ema = EMA(network.to(means.device), decay=max(1 - 10 / steps, 0.9))  # as for the diffusion score
        optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        generator = torch.Generator(means.device).manual_seed(derive_seed("class diffusion", seed))
        labels = labels.to(means.device)
        with torch.enable_grad():
            for step in range(steps):
                rows = torch.randint(len(means), (batch_size,), generator=generator, device=means.device)
                latents = means[rows]
                if deviations is not None:
                    noise = torch.randn(latents.shape, generator=generator, device=means.device)
                    latents = latents + deviations[rows] * noise
                latents = (latents - self._mean) / self._std
                optimizer.zero_grad()
                training_loss(network, latents, labels[rows], "flow", generator).backward()
                optimizer.step()
                schedule.step()
                ema.update(network, step)
        self._network = ema.model

    def __call__(self, labels: Tensor) -> Tensor:
        """Return an image (B, C, H, W) in [-1, 1] of each label (B,), of new noise in each call."""
        numbers = range(self._drawn, self._drawn + len(labels))
        self._drawn = numbers.stop
        seeds = torch.tensor([derive_seed("class diffusion sample", self._seed, number) for number in numbers])
        device = self._mean.device
        sampled = sample_latents(
            self._network, self._shape, seeds, self._sampling_steps, device, labels=labels.to(device)
        )
        with torch.no_grad():
            return self._model.decode(sampled * self._std + self._mean).clamp(-1, 1)
