"""What losses, trainer, encoder, evaluation and export know of an autoencoder, and all they know.

Shapes and ranges are those of the whole project: `pixel_values` (B, 3, H, W) float RGB in [-1, 1] (`spec.pixels`
states channels, meaning and range); `latents` (B, C, h, w) unscaled, what the decoder takes; `scaled_latents` what a
diffusion model sees.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.models.posteriors import Posterior
from ldm_ae.models.scaling import NO_SCALE, mark_scaled_encoder
from ldm_ae.models.spec import AutoencoderSpec, LatentSpec

SAMPLE_SIZE = "_sample_size"
"""Key of the configuration for `sample_size`, where the network's class has none of its own."""
DEFAULT_SAMPLE_SIZE = 256


class AutoencoderOutput(NamedTuple):
    """What a forward pass gives."""

    reconstructions: Tensor
    """(B, 3, H, W) float32, not clamped."""
    posterior: Posterior


@dataclass(frozen=True, kw_only=True)
class Codebook:
    """The codes of a discrete model."""

    method: str
    """The name of the quantizer, such as `FSQ`, for messages."""
    size: int
    """K: indices are in [0, K)."""
    levels: int | None
    """Q of the indices (B, Q, h, w) of residual quantization, None where they are (B, h, w)."""
    latents: Callable[[Tensor], Tensor]
    """Indices as `Posterior.indices`, of any integer dtype -> latents (B, C, h, w) float32; UserError for a wrong shape
    or an index that no code has."""


class Autoencoder(nn.Module, abc.ABC):
    """An image autoencoder around a diffusers model, `net`, which is what is saved.

    A class for another network lies in one file of `ldm_ae/models/adapters`. It has to

    - name in `class_names` the networks that it opens, and take `pretrained`, a model folder, as a keyword;
    - set `net` to a `ModelMixin` with `ConfigMixin`;
    - define `spec`, `encode` and `decode`.

    Everything under "capabilities" is what only some models have. Each has a value that means "none", which is the
    default; callers ask before they use it.
    """

    class_names: ClassVar[tuple[str, ...]] = ()
    """`_class_name` in the config.json of the model folders that this class opens."""

    net: Any
    """A diffusers model."""

    @classmethod
    def from_folder(cls, folder: str | Path) -> Autoencoder:
        """The model in a folder whose `_class_name` is one of `class_names`, in float32."""
        opening: Callable[..., Autoencoder] = cls
        return opening(pretrained=str(folder))

    # --------------------------------------------------------------------------------------- what every model defines

    @property
    @abc.abstractmethod
    def spec(self) -> AutoencoderSpec:
        """Pixels: channels, meaning, range. Latents: channels, downsample factor, scaling, codes."""

    @abc.abstractmethod
    def encode(self, pixel_values: Tensor) -> Posterior:
        """(B, 3, H, W) in [-1, 1] -> posterior. UserError if H or W is not divisible by the downsample factor."""

    @abc.abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Unscaled latents (B, C, h, w) -> reconstructions (B, 3, H, W) float32, not clamped."""

    # --------------------------------------------------------------------------------- capabilities: none by default

    has_moments: bool = False
    """Whether posteriors are Gaussian and have `moments`."""

    decoder_names: tuple[str, ...] = ()
    """How the names of the parameters of `net` begin on which latents do not depend. All others are the encoder's: a
    scale is measured for those, and stays when the rest is trained."""

    compvis_class: str | None = None
    """The class of CompVis's latent-diffusion that computes the same, if `net` has the parameters and configuration of
    one: `AutoencoderKL` or `VQModel`."""

    neutral_config: frozenset[str] = frozenset()
    """Keys of the configuration that change no latent, beside those of a scale and the sample size: the same weights
    are the same model (`model_hash`) whatever they are."""

    @property
    def last_layer(self) -> nn.Parameter | None:
        """The decoder's last weight, where the adaptive GAN weight is measured; None if there is no such layer."""
        return None

    @property
    def codebook(self) -> Codebook | None:
        """The codes of a discrete model; None if it is continuous."""
        return None

    def compilable_parts(self, *, for_training: bool = False) -> Sequence[nn.Module]:
        """The modules that torch.compile takes; none if the network does not compile.

        For training the last layer is outside of them, so that its gradient can be taken alone.
        """
        del for_training
        return ()

    @property
    def has_gradient_checkpointing(self) -> bool:
        """Whether `enable_gradient_checkpointing` works."""
        return bool(getattr(self.net, "_supports_gradient_checkpointing", False))

    # ------------------------------------------------------------------------------------------------------ training

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

    def compile_parts(self, *, for_training: bool = False) -> None:
        """Compile `compilable_parts` in place; the state dict's keys stay as they are."""
        for part in self.compilable_parts(for_training=for_training):
            part.compile()

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass: less memory, about a third more time."""
        self.net.enable_gradient_checkpointing()

    def draw(self, pixel_values: Tensor, noise: Tensor | None = None) -> tuple[Posterior, Tensor]:
        """Encode and draw latents (B, C, h, w): with `noise` of that shape if given, else the global generator."""
        posterior = self.encode(pixel_values)
        return posterior, posterior.sample(noise=noise)

    def forward(self, pixel_values: Tensor, noise: Tensor | None = None) -> AutoencoderOutput:
        """Encode, draw, decode."""
        posterior, latents = self.draw(pixel_values, noise)
        return AutoencoderOutput(self.decode(latents), posterior)

    # ----------------------------------------------------------------------- what follows from the above for any model

    @property
    def latent_spec(self) -> LatentSpec:
        """`spec.latents`."""
        return self.spec.latents

    @property
    def pixel_spec(self) -> PixelSpec:
        """`spec.pixels`."""
        return self.spec.pixels

    @property
    def device(self) -> torch.device:
        """Where the weights are; the CPU for a model without any."""
        tensor = next(itertools.chain(self.net.parameters(), self.net.buffers()), None)
        return torch.device("cpu") if tensor is None else tensor.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; float32 for a model without any."""
        tensors = itertools.chain(self.net.parameters(), self.net.buffers())
        return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)

    def save_config(self, folder: str | Path) -> None:
        """Write the config.json of a model folder alone."""
        self.net.save_config(folder)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a diffusers model folder (config.json, diffusion_pytorch_model.safetensors)."""
        self.net.save_pretrained(folder)

    @property
    def sample_size(self) -> int:
        """Side in pixels that the model was trained at; `DEFAULT_SAMPLE_SIZE` where its configuration has none."""
        config = self.net.config
        size = config.get("sample_size", config.get(SAMPLE_SIZE, DEFAULT_SAMPLE_SIZE))
        return size if isinstance(size, int) else min(size)

    def set_sample_size(self, size: int) -> None:
        """Record the side in pixels that the model is trained at; diffusers takes its tile size from it."""
        self.net.register_to_config(**{"sample_size" if "sample_size" in self.net.config else SAMPLE_SIZE: size})

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
            UserError: the network's class has no place for a part of it.
        """
        scale: dict[str, Any] = {
            "scaling_factor": scaling_factor, "shift_factor": shift_factor, "latents_mean": latents_mean,
            "latents_std": latents_std,
        }  # fmt: skip
        places = [key for key in scale if key in self.net.config]
        for key, value in scale.items():
            if key not in places and value != NO_SCALE[key]:
                known = ", ".join(places) or "none"
                raise UserError(
                    f"{type(self.net).__name__} has no place for {key} {value}; its configuration holds {known} of a "
                    "scale"
                )
        # A number where diffusers' default is null: pipelines of SD3 and FLUX add the shift, the others do not look.
        self.net.register_to_config(**{key: scale[key] for key in places})
        mark_scaled_encoder(self)
