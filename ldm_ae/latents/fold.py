"""The values in a trainer's file in place of unscaled latents, and the inverse: latents = values * scale + bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.models import ChannelStatistics, LatentSpec


@dataclass(frozen=True, kw_only=True)
class Constants:
    """The constants hard-coded in a trainer, which computes (values - shift) * factor of the values that it reads."""

    factor: tuple[float, ...]
    """One number, or one per channel."""
    shift: tuple[float, ...] = (0.0,)
    """One number, or one per channel."""


@dataclass(frozen=True, kw_only=True)
class Fold:
    """An affine map per channel between `latents` and the values in a file."""

    scale: tuple[float, ...]
    """One positive number per channel."""
    bias: tuple[float, ...]
    """One number per channel."""

    @classmethod
    def none(cls, channels: int) -> Fold:
        """Return the map for values that equal the latents."""
        return cls(scale=(1.0,) * channels, bias=(0.0,) * channels)

    @classmethod
    def of_model(cls, spec: LatentSpec) -> Fold:
        """Return the map for values that are the model's `scaled_latents`.

        Raises:
            UserError: The model's pipelines pack the latents, so that the map of a channel depends on the place.
        """
        if spec.patch_size > 1:
            raise UserError(
                f"the model's pipelines pack latents {spec.patch_size}x{spec.patch_size} before they scale them, and "
                "the format holds one scale per channel; choose a format of unscaled latents, such as lightningdit"
            )
        if spec.latents_mean is not None and spec.latents_std is not None:
            return cls(scale=tuple(std / spec.scaling_factor for std in spec.latents_std), bias=spec.latents_mean)
        return cls(scale=(1.0 / spec.scaling_factor,) * spec.channels, bias=(spec.shift_factor,) * spec.channels)

    @classmethod
    def for_trainer(cls, statistics: ChannelStatistics, constants: Constants) -> Fold:
        """Return the map with which a trainer's `constants` yield mean 0 and standard deviation 1 in every channel.

        With mean μ and standard deviation σ of a latent channel, the value is (latent - μ) / σ / factor + shift.

        Raises:
            UserError: A channel is constant, or the constants are for another number of channels.
        """
        if constant := statistics.constant_channels:
            raise UserError(f"channel {constant[0]} of the latents is constant, so no scale gives it unit variance")
        mean, std = statistics.channel_mean.tolist(), statistics.channel_std.tolist()
        factor, shift = _spread(constants.factor, len(mean)), _spread(constants.shift, len(mean))
        return cls(
            scale=tuple(s * f for s, f in zip(std, factor, strict=True)),
            bias=tuple(m - a * s * f for m, s, f, a in zip(mean, std, factor, shift, strict=True)),
        )

    @classmethod
    def from_json(cls, content: Any) -> Fold:
        """Invert `to_json`.

        Raises:
            ValueError: The content is not valid.
        """
        if not isinstance(content, dict) or not content.get("scale"):
            raise ValueError("the scale is missing")
        scale, bias = (tuple(float(value) for value in content[name]) for name in ("scale", "bias"))
        if len(scale) != len(bias) or not min(scale) > 0:
            raise ValueError("each channel needs a positive scale and a bias")
        return cls(scale=scale, bias=bias)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values with an explanation of their purpose."""
        return {"meaning": "latents = values * scale + bias", "scale": list(self.scale), "bias": list(self.bias)}

    def fold(self, latents: Tensor) -> Tensor:
        """Map (C, h, w) or (N, C, h, w) `latents` to values, float32."""
        scale, bias = self._like(latents)
        return ((latents.double() - bias) / scale).float()

    def unfold(self, values: Tensor) -> Tensor:
        """Map (C, h, w) or (N, C, h, w) values to float32 `latents`; trainers' samples are values times a constant."""
        scale, bias = self._like(values)
        return (values.double() * scale + bias).float()

    def fold_moments(self, moments: Tensor) -> Tensor:
        """Map (2C, h, w) or (N, 2C, h, w) mean and log-variance of the latents to those of the values, float32."""
        mean, log_variance = moments.chunk(2, dim=-3)
        scale, _ = self._like(mean)
        return torch.cat([self.fold(mean), (log_variance.double() - 2 * scale.log()).float()], dim=-3)

    def unfold_moments(self, moments: Tensor) -> Tensor:
        """Invert `fold_moments`."""
        mean, log_variance = moments.chunk(2, dim=-3)
        scale, _ = self._like(mean)
        return torch.cat([self.unfold(mean), (log_variance.double() + 2 * scale.log()).float()], dim=-3)

    def _like(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        assert latents.shape[-3] == len(self.scale), "a scale for each channel"
        scale, bias = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (self.scale, self.bias))
        return scale.to(latents.device), bias.to(latents.device)


def _spread(values: Sequence[float], channels: int) -> tuple[float, ...]:
    if len(values) not in (1, channels):
        raise UserError(f"the trainer's constants are for {len(values)} channels, the latents have {channels}")
    return tuple(values) * (channels if len(values) == 1 else 1)
