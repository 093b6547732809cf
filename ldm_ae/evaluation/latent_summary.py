"""Statistics of the latents of a set of images, channel by channel, gathered batch by batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ldm_ae.core.seeding import seeded_noise
from ldm_ae.models import ChannelStatistics, GaussianPosterior, Posterior

ACTIVE_NATS = 0.01
"""A channel is active if its KL to the prior, averaged over positions and images, exceeds this many nats."""

BINS = 48
HISTOGRAM_DEVIATIONS = 4.0


@dataclass(frozen=True, kw_only=True)
class ChannelSummary:
    """Statistics of one latent channel over all images, from one posterior sample per image."""

    mean: float
    std: float
    kl_nats: float | None
    """Mean KL to N(0, 1) per element, None where the posterior is not Gaussian."""
    active: bool | None
    """Whether `kl_nats` exceeds `ACTIVE_NATS`."""
    histogram: tuple[int, ...]
    """Counts in equal bins over `histogram_range`; values outside it count in the outermost bins."""
    histogram_range: tuple[float, float]
    """Range of four standard deviations around the mean, both of the first batch."""


class LatentSummary:
    """Running statistics of posteriors.

    Args:
        channels: C of the latents.
        seed: Seed of the posterior samples. Each image has its own noise, so that the batch size has no effect.
    """

    def __init__(self, channels: int, seed: int):
        self.statistics = ChannelStatistics(channels)
        self._seed = seed
        self._images = 0
        self._kl = torch.zeros(channels, dtype=torch.float64)  # nats, summed over images of the mean over positions
        self._gaussian = True
        self._counts = torch.zeros(channels, BINS, dtype=torch.int64)
        self._low = self._high = torch.zeros(channels, dtype=torch.float64)

    def update(self, posterior: Posterior, latents_shape: torch.Size) -> None:
        """Add the posterior of a batch whose latents are `latents_shape`, (B, C, h, w)."""
        first = self._seed + self._images
        noise = seeded_noise(torch.arange(first, first + latents_shape[0]), tuple(latents_shape[1:]))
        latents = posterior.sample(noise=noise).detach().to("cpu", torch.float64)
        self.statistics.update(latents)
        if self._images == 0:
            reach = HISTOGRAM_DEVIATIONS * self.statistics.channel_std.clamp(min=1e-12)
            self._low, self._high = self.statistics.channel_mean - reach, self.statistics.channel_mean + reach
        values = latents.transpose(0, 1).flatten(1)
        bins = (values - self._low[:, None]) / (self._high - self._low)[:, None] * BINS
        bins = bins.floor().long().clamp(0, BINS - 1)
        self._counts += torch.stack([channel.bincount(minlength=BINS) for channel in bins])
        if isinstance(posterior, GaussianPosterior):
            self._kl += posterior.kl_map().double().mean(dim=(2, 3)).sum(dim=0).cpu()
        else:
            self._gaussian = False
        self._images += latents_shape[0]

    def channels(self) -> list[ChannelSummary]:
        """Every channel, in order."""
        kl = self._kl / max(self._images, 1)
        return [
            ChannelSummary(
                mean=float(self.statistics.channel_mean[c]),
                std=float(self.statistics.channel_std[c]),
                kl_nats=float(kl[c]) if self._gaussian else None,
                active=bool(kl[c] > ACTIVE_NATS) if self._gaussian else None,
                histogram=tuple(self._counts[c].tolist()),
                histogram_range=(float(self._low[c]), float(self._high[c])),
            )
            for c in range(len(kl))
        ]
