"""Mean and standard deviation of latents per channel, exact and mergeable.

Source: Chan, Golub and LeVeque, Algorithms for Computing the Sample Variance, The American Statistician 37(3), 1983,
equations 2.1a and 2.1b, in float64.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NEARLY_CONSTANT = 1e-5
"""Standard deviation at the level of rounding errors: equal latents around 1 differ by about 1e-7 in float32."""


class ChannelStatistics:
    """Running statistics over batches, the same for every split into batches and processes (to float64 rounding).

    Args:
        channels: C of the latents.
    """

    def __init__(self, channels: int):
        self.count = 0
        """Number of elements seen per channel."""
        self.channel_mean = torch.zeros(channels, dtype=torch.float64)
        self._squares = torch.zeros(channels, dtype=torch.float64)  # sum of squared differences from the mean
        self._errors: Tensor | None = None  # sum of squared errors

    def update(self, latents: Tensor, *, squared_error: Tensor | None = None) -> None:
        """Add a batch (B, C, h, w), with the mean squared rounding error of each image and channel (B, C), if known."""
        values = latents.detach().to("cpu", torch.float64).transpose(0, 1).flatten(1)
        mean = values.mean(dim=1)
        self._merge(values.shape[1], mean, (values - mean[:, None]).square().sum(dim=1))
        if squared_error is not None:
            self._add_errors(squared_error.to("cpu", torch.float64).sum(dim=0) * latents[0, 0].numel())

    def merge(self, other: ChannelStatistics) -> None:
        """Add the statistics of another process or shard."""
        self._merge(other.count, other.channel_mean, other._squares)
        if other._errors is not None:
            self._add_errors(other._errors)

    def _add_errors(self, errors: Tensor) -> None:
        self._errors = errors if self._errors is None else self._errors + errors

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
        """Population standard deviation of each channel, (C,) float64."""
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

    @property
    def scaling_factor(self) -> float | None:
        """1 / `pooled_std`, or None where the latents are constant, so that rounding errors are not scaled up to 1."""
        return None if self.is_constant else 1.0 / self.pooled_std

    @property
    def is_constant(self) -> bool:
        """Whether the latents are equal everywhere, up to `NEARLY_CONSTANT`; True where there are no latents."""
        return not self.pooled_std > NEARLY_CONSTANT * max(1.0, abs(self.pooled_mean))

    @property
    def constant_channels(self) -> list[int]:
        """The channels that are equal everywhere, up to `NEARLY_CONSTANT`."""
        threshold = NEARLY_CONSTANT * self.channel_mean.abs().clamp(min=1.0)
        return [i for i, varies in enumerate((self.channel_std > threshold).tolist()) if not varies]

    @property
    def relative_error(self) -> Tensor | None:
        """Root mean squared error as a fraction of `channel_std`, (C,) float64; None where no error is known."""
        if self._errors is None:
            return None
        error = (self._errors / max(self.count, 1)).sqrt()
        return torch.where(error > 0, error / self.channel_std, 0.0)

    def state(self) -> dict[str, object]:
        """Return everything as JSON values; `from_state` restores an equal object."""
        errors = {} if self._errors is None else {"errors": self._errors.tolist()}
        return {"count": self.count, "mean": self.channel_mean.tolist(), "squares": self._squares.tolist()} | errors

    @classmethod
    def from_state(cls, state: dict[str, object]) -> ChannelStatistics:
        """Restore an object from `state()`; KeyError or ValueError for other values."""
        count = state["count"]
        lists: dict[str, Any] = {"mean": state["mean"], "squares": state["squares"]}
        lists |= {"errors": state["errors"]} if "errors" in state else {}
        if any(not isinstance(values, list) or len(values) != len(lists["mean"]) for values in lists.values()):
            raise ValueError("mean and squares must be lists of one length, and so must errors")
        numbers = [value for values in lists.values() for value in values]
        if type(count) is not int or count < 0 or any(type(value) is not float for value in numbers):
            raise ValueError("count must be a whole number, mean and squares floating-point numbers")
        statistics = cls(len(lists["mean"]))
        statistics.count = count
        tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in lists.items()}
        statistics.channel_mean, statistics._squares = tensors["mean"], tensors["squares"]
        statistics._errors = tensors.get("errors")
        return statistics
