"""Mean and standard deviation of latents per channel, exact and mergeable.

Source: Chan, Golub and LeVeque, Algorithms for Computing the Sample Variance, The American Statistician 37(3), 1983,
equations 2.1a and 2.1b, in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor


class ChannelStatistics:
    """Running statistics over batches, the same whatever the split into batches and processes (to float64 rounding).

    Args:
        channels: C of the latents.
    """

    def __init__(self, channels: int):
        self.count = 0
        """Elements seen per channel."""
        self.channel_mean = torch.zeros(channels, dtype=torch.float64)
        self._squares = torch.zeros(channels, dtype=torch.float64)  # sum of squared deviations from the mean

    def update(self, latents: Tensor) -> None:
        """Add a batch (B, C, h, w)."""
        values = latents.detach().to("cpu", torch.float64).transpose(0, 1).flatten(1)
        mean = values.mean(dim=1)
        self._merge(values.shape[1], mean, (values - mean[:, None]).square().sum(dim=1))

    def merge(self, other: ChannelStatistics) -> None:
        """Add what another process or shard has seen."""
        self._merge(other.count, other.channel_mean, other._squares)

    def _merge(self, count: int, mean: Tensor, squares: Tensor) -> None:
        if count == 0:
            return
        total = self.count + count
        delta = mean - self.channel_mean
        self._squares += squares + delta.square() * (self.count * count / total)
        self.channel_mean += delta * (count / total)
        self.count = total

    @property
    def channel_std(self) -> Tensor:
        """(C,) float64, population standard deviation of each channel."""
        return (self._squares / max(self.count, 1)).sqrt()

    @property
    def pooled_mean(self) -> float:
        """Mean over all channels."""
        return float(self.channel_mean.mean())

    @property
    def pooled_std(self) -> float:
        """Standard deviation over all elements of all channels around the pooled mean: 1 / `scaling_factor`."""
        within = self._squares.mean() / max(self.count, 1)
        between = (self.channel_mean - self.channel_mean.mean()).square().mean()
        return float((within + between).sqrt())

    def state(self) -> dict[str, object]:
        """Everything as JSON values; `from_state` gives the same object back."""
        return {"count": self.count, "mean": self.channel_mean.tolist(), "squares": self._squares.tolist()}

    @classmethod
    def from_state(cls, state: dict[str, object]) -> ChannelStatistics:
        """The inverse of `state`; KeyError or ValueError if it is none."""
        mean, squares, count = state["mean"], state["squares"], state["count"]
        if not isinstance(mean, list) or not isinstance(squares, list) or len(mean) != len(squares):
            raise ValueError("mean and squares must be lists of one length")
        if type(count) is not int or count < 0 or any(type(value) is not float for value in mean + squares):
            raise ValueError("count must be a whole number, mean and squares floating-point numbers")
        statistics = cls(len(mean))
        statistics.count = count
        statistics.channel_mean = torch.tensor(mean, dtype=torch.float64)
        statistics._squares = torch.tensor(squares, dtype=torch.float64)
        return statistics
