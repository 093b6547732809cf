"""The files of a store that hold the statistics of its latents."""

from __future__ import annotations

import io
from typing import Any

import torch

from ldm_ae.models import ChannelStatistics


def describe_statistics(statistics: ChannelStatistics, *, images: int) -> dict[str, Any]:
    """Return the content of stats.json: float64 population statistics of the stored `latents`, without mirror images.

    `ChannelStatistics.from_state` takes `state`, to merge with others exactly. `relative_error` exists for uint8: the
    root of the mean squared error as a fraction of the channel's standard deviation.
    """
    error = {} if statistics.relative_error is None else {"relative_error": statistics.relative_error.tolist()}
    return {
        "images": images,
        "channel_mean": statistics.channel_mean.tolist(),
        "channel_std": statistics.channel_std.tolist(),
        "pooled_mean": statistics.pooled_mean,
        "pooled_std": statistics.pooled_std,
        "scaling_factor": statistics.scaling_factor,  # None for constant latents
        "state": statistics.state(),
    } | error


def bucket_statistics(statistics: ChannelStatistics) -> bytes:
    """Return the content of the file of tensors beside the shards: `mean` and `std`, (1, C, 1, 1) float32.

    It is serialized in memory, because torch.save puts a path's name into the bytes.
    """
    buffer = io.BytesIO()
    mean, std = (value.float().view(1, -1, 1, 1) for value in (statistics.channel_mean, statistics.channel_std))
    torch.save({"mean": mean, "std": std}, buffer)
    return buffer.getvalue()
