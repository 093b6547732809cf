"""The files of a store that hold the statistics of its latents."""

from __future__ import annotations

import io
from typing import Any

import torch

from ldm_ae.models import ChannelStatistics


def describe_statistics(statistics: ChannelStatistics, *, images: int) -> dict[str, Any]:
    """The content of stats.json: population statistics of the stored `latents` in float64, mirror images not counted.

    `state` is what `ChannelStatistics.from_state` takes, to merge with others exactly. `relative_error` is there for
    uint8: the root of the mean squared error as a part of the channel's deviation.
    """
    error = {} if statistics.relative_error is None else {"relative_error": statistics.relative_error.tolist()}
    return {
        "images": images,
        "channel_mean": statistics.channel_mean.tolist(),
        "channel_std": statistics.channel_std.tolist(),
        "pooled_mean": statistics.pooled_mean,
        "pooled_std": statistics.pooled_std,
        "scaling_factor": statistics.scaling_factor,  # None of constant latents
        "state": statistics.state(),
    } | error


def lightningdit_statistics(statistics: ChannelStatistics) -> bytes:
    """LightningDiT's file. Written through memory, because torch.save puts a path's name into the bytes."""
    buffer = io.BytesIO()
    mean, std = (value.float().view(1, -1, 1, 1) for value in (statistics.channel_mean, statistics.channel_std))
    torch.save({"mean": mean, "std": std}, buffer)
    return buffer.getvalue()
