"""Statistics of the latents over all images, from what an evaluation gathers for its report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from ldm_ae.evaluation.latent_summary import ACTIVE_NATS, LatentSummary
from ldm_ae.evaluation.metrics.interface import Metric, ScoreInfo, Scores, Setting
from ldm_ae.models import Posterior


class _OfLatents(Metric):
    """Base of metrics of the latents that the evaluation has gathered; they do not use the images."""

    group = "latents"
    compares_images = False

    def __init__(self) -> None:
        self.latents: LatentSummary | None = None

    def prepare(self, setting: Setting) -> None:
        """Keep the evaluation's statistics."""
        self.latents = setting.latents

    def reset(self) -> None:
        """Do nothing: the evaluation owns the statistics."""

    def update(
        self, reconstructions: Tensor, pixel_values: Tensor, posterior: Posterior | None = None
    ) -> Mapping[str, Tensor]:
        """Do nothing: the evaluation gathers the statistics."""
        return {}


class ActiveChannels(_OfLatents):
    """Number of channels that a Gaussian posterior uses."""

    name = "active_latent_channels"
    label = "Active latent channels"
    explanation = f"Number of channels whose KL is above {ACTIVE_NATS} nats per element."

    def compute(self) -> Scores:
        """Return the count; an empty mapping where the posterior is not Gaussian."""
        channels = [] if self.latents is None else self.latents.channels()
        if not channels or any(channel.active is None for channel in channels):
            return {}
        return {self.name: sum(bool(channel.active) for channel in channels)}


class LatentStatistics(_OfLatents):
    """Mean and standard deviation of the latents, and the scaling factor that follows from them."""

    name = "latents"
    label = "Latents"
    scores: ClassVar[Mapping[str, ScoreInfo]] = {
        "latent_mean": ScoreInfo(label="Latent mean", explanation="Over all elements of all channels."),
        "latent_std": ScoreInfo(label="Latent standard deviation", explanation="Over all elements of all channels."),
        "scaling_factor": ScoreInfo(
            label="Scaling factor",
            explanation="1 / standard deviation; scaled latents have unit variance.",
        ),
    }

    def compute(self) -> Scores:
        """Return the numbers; no scaling factor where the standard deviation is 0."""
        if self.latents is None:
            return {}
        statistics = self.latents.statistics
        found: dict[str, float] = {"latent_mean": statistics.pooled_mean, "latent_std": statistics.pooled_std}
        if (factor := statistics.scaling_factor) is not None:
            found["scaling_factor"] = factor
        return found
