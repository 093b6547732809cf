"""What losses, trainer, encoder, evaluation and export know of an autoencoder, and all they know.

Shapes and ranges are those of the whole project: `pixel_values` (B, 3, H, W) float RGB in [-1, 1]; `latents`
(B, C, h, w) unscaled, what the decoder takes; `scaled_latents` what a diffusion model sees.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ldm_ae.core.errors import UserError


def _is_number(value: object) -> bool:
    """Whether float32 holds it; a whole number may be too large even to be turned into a float."""
    largest = torch.finfo(torch.float32).max
    return isinstance(value, float | int) and not isinstance(value, bool) and -largest <= value <= largest


@dataclass(frozen=True, kw_only=True)
class LatentSpec:
    """What the latents of a model are, and how they are scaled for a diffusion model."""

    channels: int
    """C of (B, C, h, w)."""
    downsample_factor: int
    """H / h, a power of two."""
    scaling_factor: float
    """Multiplies the shifted latents, or with `latents_mean` and `latents_std` the whitened ones."""
    shift_factor: float = 0.0
    """Subtracted before scaling, unless `latents_mean` and `latents_std` are set."""
    latents_mean: tuple[float, ...] | None = None
    """Per-channel mean; with `latents_std` it replaces `shift_factor`."""
    latents_std: tuple[float, ...] | None = None
    """Per-channel standard deviation; latents are divided by it before `scaling_factor` multiplies them."""
    codebook_size: int | None = None
    """Number of codes of a discrete model, None for a continuous one."""
    codebook_levels: int | None = None
    """Q of the indices (B, Q, h, w) of residual quantization, None where they are (B, h, w)."""

    def __post_init__(self) -> None:
        of_codes = [count for count in (self.codebook_size, self.codebook_levels) if count is not None]
        if any(type(count) is not int or count < 1 for count in (self.channels, self.downsample_factor, *of_codes)):
            raise UserError(
                "latents: channels, downsample_factor, codebook_size and codebook_levels must be whole numbers above 0"
            )
        if self.codebook_size is not None and self.codebook_size > 2**63:
            raise UserError(f"latents: codebook_size is {self.codebook_size}; an index has room for 2^63 codes")
        vectors = [vector for vector in (self.latents_mean, self.latents_std) if vector is not None]
        if any(type(vector) is not tuple or len(vector) != self.channels for vector in vectors):
            raise UserError("latents: latents_mean and latents_std must hold a number for each channel")
        scales = (self.scaling_factor, *(self.latents_std or ()))
        if not all(_is_number(value) for value in (*scales, self.shift_factor, *(self.latents_mean or ()))):
            raise UserError("latents: the factors that scale them must be finite numbers")
        if not all(scales):
            raise UserError("latents: scaling_factor and latents_std must not be 0")

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of the latents of an (height, width) image; UserError if not divisible by the downsample factor."""
        factor = self.downsample_factor
        if height % factor or width % factor or height <= 0 or width <= 0:
            raise UserError(
                f"an image of height x width {height}x{width} is not divisible by the model's downsample factor "
                f"{factor}; use for example {max(height // factor, 1) * factor}x{max(width // factor, 1) * factor}"
            )
        return height // factor, width // factor

    def _mean_std(self, like: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.latents_mean is None or self.latents_std is None:
            return None
        mean, std = (like.new_tensor(v).view(1, -1, 1, 1) for v in (self.latents_mean, self.latents_std))
        return mean, std

    def scale(self, latents: Tensor) -> Tensor:
        """latents -> scaled_latents, (B, C, h, w), as the pipelines that read this specification do.

        Without vectors (latents - shift_factor) * scaling_factor: Stable Diffusion, SDXL, Kolors and DiT where the
        shift is 0, SD3 and FLUX with any. With vectors (latents - latents_mean) / latents_std * scaling_factor: SDXL,
        and the pipelines and trainers that read vectors without a factor where it is 1; the others ignore vectors and
        decode wrongly.
        """
        if (mean_std := self._mean_std(latents)) is not None:
            return (latents - mean_std[0]) * self.scaling_factor / mean_std[1]
        return (latents - self.shift_factor) * self.scaling_factor

    def unscale(self, scaled_latents: Tensor) -> Tensor:
        """scaled_latents -> latents, (B, C, h, w): the inverse of `scale`."""
        if (mean_std := self._mean_std(scaled_latents)) is not None:
            return scaled_latents * mean_std[1] / self.scaling_factor + mean_std[0]
        return scaled_latents / self.scaling_factor + self.shift_factor


class Posterior(abc.ABC):
    """The distribution of latents that an encoder gives for a batch of images."""

    moments: Tensor | None = None
    """(B, 2C, h, w) float32: mean and log-variance (clamped to [-30, 20]) on channels, if Gaussian."""
    indices: Tensor | None = None
    """(B, h, w) int64 codebook entries, if discrete; (B, Q, h, w) with Q levels of residual quantization."""

    @abc.abstractmethod
    def sample(self, generator: torch.Generator | None = None, *, noise: Tensor | None = None) -> Tensor:
        """One draw, (B, C, h, w). `noise`, standard normal of that shape, replaces the generator's."""

    @abc.abstractmethod
    def mode(self) -> Tensor:
        """The most likely latents, (B, C, h, w)."""

    @abc.abstractmethod
    def regularization(self) -> dict[str, Tensor]:
        """Named terms (kl, commitment, ...), each (B,) float32, summed over one image's latents; entropies in nats."""

    @abc.abstractmethod
    def rate(self) -> Tensor | None:
        """Bits per image, (B,) float32, or None where no rate is defined."""


class AutoencoderOutput(NamedTuple):
    """What a forward pass gives."""

    reconstructions: Tensor
    """(B, 3, H, W) float32, not clamped."""
    posterior: Posterior


class Autoencoder(nn.Module, abc.ABC):
    """An image autoencoder. Subclasses wrap a diffusers model as `net`, which is what is saved."""

    class_names: ClassVar[tuple[str, ...]]
    """The `_class_name`s of the model folders that the class opens: diffusers' name of the network."""
    net: nn.Module

    @property
    @abc.abstractmethod
    def latent_spec(self) -> LatentSpec:
        """Channels, downsample factor, scaling."""

    @property
    @abc.abstractmethod
    def last_layer(self) -> nn.Parameter:
        """The decoder's last weight, where the adaptive GAN weight is measured."""

    @abc.abstractmethod
    def encode(self, pixel_values: Tensor) -> Posterior:
        """(B, 3, H, W) in [-1, 1] -> posterior. UserError if H or W is not divisible by the downsample factor."""

    @abc.abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Unscaled latents (B, C, h, w) -> reconstructions (B, 3, H, W) float32, not clamped."""

    def indices_to_latents(self, indices: Tensor) -> Tensor:
        """Indices of a discrete model, as `Posterior.indices` but of any integer dtype -> latents (B, C, h, w) float32.

        Raises:
            UserError: an index that no code has, or the model is not discrete.
        """
        del indices
        raise UserError("indices say nothing to this model: it has no codebook")

    @abc.abstractmethod
    def save_config(self, folder: str | Path) -> None:
        """Write the config.json of a model folder alone."""

    @abc.abstractmethod
    def save_pretrained(self, folder: str | Path) -> None:
        """Write a diffusers model folder (config.json, diffusion_pytorch_model.safetensors)."""

    @abc.abstractmethod
    def compile_parts(self, *, for_training: bool = False) -> None:
        """Compile encoder and decoder in place with torch.compile; the state dict's keys stay as they are.

        For training the last layer stays out of the compiled graphs, so that its gradient can be taken alone.
        """

    @abc.abstractmethod
    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass: less memory, about a third more time."""

    @property
    @abc.abstractmethod
    def sample_size(self) -> int:
        """Side in pixels that the model was trained at."""

    @abc.abstractmethod
    def set_sample_size(self, size: int) -> None:
        """Record the side in pixels that the model is trained at; diffusers takes its tile size from it."""

    @abc.abstractmethod
    def set_scaling(
        self,
        *,
        scaling_factor: float,
        shift_factor: float = 0.0,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
    ) -> None:
        """Record a scale, which `LatentSpec` defines, in the configuration that `save_pretrained` writes.

        `ldm_ae.models.scaling.measured_scaling` gives a measured one in the form that the model's pipelines read.

        Raises:
            UserError: the model's class has no place for the shift or the vectors.
        """

    def learn(self, posteriors: Sequence[Posterior]) -> dict[str, Tensor]:
        """Update what learns without gradients, such as moving averages of codes; nothing by default.

        A training step calls it once on every process, after its backward passes and before the optimizer's update.

        Args:
            posteriors: Of this process's micro-batches, in order.

        Returns:
            Scalars to log, of the whole step over all processes.
        """
        del posteriors
        return {}

    def needed_terms(self) -> frozenset[str]:
        """Names of the terms in `Posterior.regularization` without which a part that is to learn does not; none by
        default."""
        return frozenset()

    def learned_parameters(self) -> list[Tensor]:
        """The parameters that `learn` may change, beside buffers; none by default."""
        return []

    def draw(self, pixel_values: Tensor, noise: Tensor | None = None) -> tuple[Posterior, Tensor]:
        """Encode and draw latents (B, C, h, w): with `noise` of that shape if given, else the global generator."""
        posterior = self.encode(pixel_values)
        return posterior, posterior.sample(noise=noise)

    def forward(self, pixel_values: Tensor, noise: Tensor | None = None) -> AutoencoderOutput:
        """Encode, draw, decode."""
        posterior, latents = self.draw(pixel_values, noise)
        return AutoencoderOutput(self.decode(latents), posterior)
