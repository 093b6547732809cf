"""The complete interface of an autoencoder to losses, trainer, encoder, evaluation and export.

The whole project uses these shapes and ranges: `pixel_values` (B, 3, H, W) float RGB in [-1, 1] (`spec.pixels` states
channels, meaning and range); `latents` (B, C, h, w) unscaled, the decoder's input; `scaled_latents`, the input of a
diffusion model.
"""

from __future__ import annotations

import abc
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.models.checks import require_device, require_latents
from ldm_ae.models.in_memory import InMemoryImages
from ldm_ae.models.likelihoods import recorded_likelihood
from ldm_ae.models.posteriors import Posterior
from ldm_ae.models.scaling import NO_SCALE, mark_scaled_encoder
from ldm_ae.models.spec import AutoencoderSpec, Codebook, LatentSpec

if TYPE_CHECKING:
    from ldm_ae.losses import Likelihood

SAMPLE_SIZE = "_sample_size"
"""Configuration key of `sample_size`, where the network's class has no key of its own."""
DEFAULT_SAMPLE_SIZE = 256


class AutoencoderOutput(NamedTuple):
    """The output of a forward pass."""

    reconstructions: Tensor
    """Reconstructions (B, 3, H, W) float32, not clamped."""
    posterior: Posterior


class Autoencoder(InMemoryImages, nn.Module, abc.ABC):
    """An image autoencoder around a diffusers model, `net`, which is the part that is saved.

    A class for another network occupies one file of `ldm_ae/models/adapters`. It must

    - name in `class_names` the networks that it opens, and take `pretrained`, a model folder, as a keyword;
    - set `net` to a `ModelMixin` with `ConfigMixin`;
    - define `spec`, `encode` and `decode`, which begin with `require_images` and `require_latents`;
    - return a small random network from `example`, on which `tests/models/test_contract.py` tests the whole interface.

    Only some models have the members under "capabilities". Each has a value that means "none", which is the default;
    callers check it before use.
    """

    class_names: ClassVar[tuple[str, ...]] = ()
    """Values of `_class_name` in the config.json of the model folders that this class opens."""

    net: Any
    """A diffusers model."""

    @classmethod
    def from_folder(cls, folder: str | Path) -> Autoencoder:
        """Load a folder whose `_class_name` is one of `class_names`, in float32.

        Raises:
            UserError: The folder is damaged, or its images are not supported.
        """
        opening: Callable[..., Autoencoder] = cls
        model = opening(pretrained=str(folder))
        try:
            model.pixel_spec.require_supported(type(model.net).__name__)
        except UserError as error:
            raise UserError(f"{folder}/config.json: {error}") from None
        return model

    @classmethod
    def around(cls, net: Any) -> Autoencoder:
        """Return an autoencoder with the network `net`, of one of `class_names`, and its parameters, not copies.

        A class whose state is more than `net` overrides this method.

        Raises:
            UserError: the network's images or configuration are not supported.
        """
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        model.net = net
        model.spec.pixels.require_supported(type(net).__name__)
        return model

    @classmethod
    def network_class(cls, class_name: str) -> Any:
        """Return the class of network of one of `class_names`; by default, the one of this name that the module of the
        autoencoder defines or imports, else the one in diffusers.

        Raises:
            UserError: the installed diffusers does not have it.
        """
        import diffusers  # takes seconds

        found = getattr(sys.modules[cls.__module__], class_name, None) or getattr(diffusers, class_name, None)
        if found is None:
            raise UserError(f"{class_name} is not in diffusers {diffusers.__version__}; install a newer diffusers")
        return found

    @classmethod
    def example(cls, class_name: str) -> Autoencoder:
        """Return the smallest random network of one of `class_names`; by default, the constructor's default network."""
        del class_name
        return cls()

    # ------------------------------------------------------------------------------------------ required of every model

    @property
    @abc.abstractmethod
    def spec(self) -> AutoencoderSpec:
        """Specification of the images (channels, meaning, range) and the latents (channels, downsample factor, scaling,
        codes)."""

    @abc.abstractmethod
    def encode(self, pixel_values: Tensor) -> Posterior:
        """Encode `pixel_values`, images (B, 3, H, W) in [-1, 1], on the model's device.

        Raises:
            UserError: the images are not of this shape, are uint8, are outside [-1.5, 1.5] or not finite, or H or W is
                not divisible by the downsample factor. The values are not checked in training mode.
        """

    @abc.abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Decode unscaled latents (B, C, h, w) to reconstructions (B, 3, H, W) float32, not clamped."""

    # --------------------------------------------------------------------------------- capabilities: none by default

    has_moments: bool = False
    """Whether posteriors are Gaussian and have `moments`."""

    decoder_names: tuple[str, ...] = ()
    """Prefixes of the names of `net`'s parameters that do not affect latents. All others belong to the encoder: a scale
    is measured for those and stays valid when only parameters with these prefixes are trained."""

    takes_scaled_latents: bool = False
    """Whether the network is made for latents to which another model's scale has been applied, as a TAESD is, whose
    decoder limits them to (-3, 3)."""

    compvis_class: str | None = None
    """The class of CompVis's latent-diffusion with the same function, `AutoencoderKL` or `VQModel`, if `net` has the
    parameters and configuration of one."""

    frozen_names: tuple[str, ...] = ()
    """Prefixes of the names of `net`'s parameters that training never changes: those of an encoder that the class keeps
    as it is, and those that neither `encode` nor `decode` uses."""

    scale_buffers: tuple[str, ...] = ()
    """Names of the tensors in `net`'s state dict that hold the scale, which change no latent (`model_hash`)."""

    neutral_config: frozenset[str] = frozenset()
    """Configuration keys, beside the scale's and the sample size, that change no latent: models that differ in them
    alone are the same model (`model_hash`)."""

    @property
    def scale_keys(self) -> tuple[str, ...]:
        """The fields of a scale that `net` can store, of `NO_SCALE`; by default, those that its configuration has, and
        none where it has no configuration."""
        return tuple(key for key in NO_SCALE if key in getattr(self.net, "config", {}))

    @property
    def last_layer(self) -> nn.Parameter | None:
        """The decoder's last weight, at which the adaptive GAN weight is measured; None if there is no such layer."""
        return None

    @property
    def encoder_last_layer(self) -> nn.Parameter | None:
        """The last weight of the encoder, before a convolution of 1x1 outside it; adaptive weights of a regularizer's
        terms are measured there. None if there is no such layer, or it is never trained."""
        return None

    @property
    def codebook(self) -> Codebook | None:
        """The codes of a discrete model; None if it is continuous."""
        return None

    @property
    def likelihood(self) -> Likelihood | None:
        """The distribution of images given the reconstructions that the model was trained with, with its learned scale,
        on the model's device; None for another reconstruction loss. Each access returns a new object.

        Raises:
            UserError: the record in the configuration is damaged, or of a class that is not installed.
        """
        return recorded_likelihood(self.net)

    def compilable_parts(self, *, for_training: bool = False) -> Sequence[nn.Module]:
        """Return the modules that torch.compile accepts; none if the network does not compile.

        For training they exclude the last layer, so that its gradient can be computed separately.
        """
        del for_training
        return ()

    def exact_parts(self) -> Sequence[nn.Module]:
        """Return the modules that `ldm_ae.models.wrappers.exact_tiling` can compute in bands of rows; none if the
        network is not built from such modules.

        All layers whose memory grows with the image must be inside them.
        """
        return ()

    @property
    def has_gradient_checkpointing(self) -> bool:
        """Whether `enable_gradient_checkpointing` works."""
        return bool(getattr(self.net, "_supports_gradient_checkpointing", False))

    # ------------------------------------------------------------------------------------------------------ training

    def learn(self, posteriors: Sequence[Posterior]) -> dict[str, Tensor]:
        """Update the parts that learn without gradients, such as moving averages of codes; do nothing by default.

        A training step calls it once on every process, after its backward passes and before the optimizer's update.

        Args:
            posteriors: The posteriors of this process's micro-batches, in order.

        Returns:
            Scalars to log, for the whole step over all processes.
        """
        del posteriors
        return {}

    def needed_terms(self) -> frozenset[str]:
        """Names of the terms in `Posterior.regularization` without which a trainable part does not learn; none by
        default."""
        return frozenset()

    def learned_parameters(self) -> list[Tensor]:
        """Return the parameters that `learn` may change, in addition to buffers; none by default."""
        return []

    def compile_parts(self, *, for_training: bool = False, apart: nn.Parameter | None = None) -> None:
        """Compile `compilable_parts` in place; the state dict's keys do not change.

        Args:
            for_training: Which of them.
            apart: A parameter whose gradient is computed separately: of a part with it, the blocks without it.
        """
        for part in self.compilable_parts(for_training=for_training):
            for block in [part] if apart is None else _blocks_without(apart, part):
                block.compile()

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass: this needs less memory and about a third more time."""
        self.net.enable_gradient_checkpointing()

    def draw(self, pixel_values: Tensor, noise: Tensor | None = None) -> tuple[Posterior, Tensor]:
        """Encode, and draw latents (B, C, h, w) with `noise` of that shape if given, else with the global generator."""
        posterior = self.encode(pixel_values)
        return posterior, posterior.sample(noise=noise)

    def forward(self, pixel_values: Tensor, noise: Tensor | None = None) -> AutoencoderOutput:
        """Encode, draw, decode."""
        posterior, latents = self.draw(pixel_values, noise)
        return AutoencoderOutput(self.decode(latents), posterior)

    # -------------------------------------------------------------------------------------------- scale and shapes

    def scale(self, latents: Tensor) -> Tensor:
        """Convert latents (B, C, h, w) to what a diffusion model sees, as the class's pipeline does.

        The result has `latent_spec.scaled_channels` channels: where the patch size p is above 1 (FLUX.2), it is
        (B, C p^2, h/p, w/p).
        """
        self.require_latents(latents, on_device=False)
        return self.latent_spec.scale(latents)

    def unscale(self, scaled_latents: Tensor) -> Tensor:
        """Convert what a diffusion model sees to latents (B, C, h, w): the inverse of `scale`."""
        require_latents(scaled_latents, "scaled_latents", self.latent_spec.scaled_channels)
        return self.latent_spec.unscale(scaled_latents)

    def require_images(self, pixel_values: Tensor) -> None:
        """Raise UserError unless `encode` accepts these images; every `encode` begins with it.

        The values are not checked in training mode, compiled code and `ldm_ae.images.pixels.images_in_range`.
        """
        spec = self.spec
        spec.pixels.require_images(pixel_values)
        spec.latents.latent_size(*pixel_values.shape[-2:])
        require_device(pixel_values, "pixel_values", self.device)
        if not (self.training or torch.compiler.is_compiling()):
            spec.pixels.require_range(pixel_values)

    def require_latents(self, latents: Tensor, *, on_device: bool = True) -> None:
        """Raise UserError unless `decode` accepts these latents; every `decode` begins with it."""
        hint = "" if self.codebook is None else "; indices become latents by model.codebook.latents(indices)"
        require_latents(latents, "latents", self.latent_spec.channels, hint=hint)
        if on_device:
            require_device(latents, "latents", self.device)

    # ----------------------------------------------------------------------------------- derived from the above members

    def encoder_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters of `net` that affect latents, all but the decoder's, by their names."""
        return {name: p for name, p in self.net.named_parameters() if not name.startswith(self.decoder_names)}

    @property
    def latent_spec(self) -> LatentSpec:
        """The latents' specification, `spec.latents`."""
        return self.spec.latents

    @property
    def pixel_spec(self) -> PixelSpec:
        """The images' specification, `spec.pixels`."""
        return self.spec.pixels

    @property
    def device(self) -> torch.device:
        """The device of the weights; the CPU for a model without weights."""
        tensor = next(itertools.chain(self.net.parameters(), self.net.buffers()), None)
        return torch.device("cpu") if tensor is None else tensor.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights; float32 for a model without weights."""
        tensors = itertools.chain(self.net.parameters(), self.net.buffers())
        return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)

    def save_config(self, folder: str | Path) -> None:
        """Write only the config.json of a model folder."""
        self.net.save_config(folder)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a diffusers model folder (config.json, diffusion_pytorch_model.safetensors)."""
        self.net.save_pretrained(folder)

    @property
    def sample_size(self) -> int:
        """Side in pixels of the training images; `DEFAULT_SAMPLE_SIZE` where the configuration does not state it."""
        config = self.net.config
        size = config.get("sample_size", config.get(SAMPLE_SIZE, DEFAULT_SAMPLE_SIZE))
        return size if isinstance(size, int) else min(size)

    def set_sample_size(self, size: int) -> None:
        """Record the side in pixels of the training images; diffusers derives its tile size from it."""
        self.net.register_to_config(**{"sample_size" if "sample_size" in self.net.config else SAMPLE_SIZE: size})

    def set_scaling(
        self,
        *,
        scaling_factor: float,
        shift_factor: float = 0.0,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
    ) -> None:
        """Record a scale, as `LatentSpec` defines it, in the configuration that `save_pretrained` writes.

        `ldm_ae.models.scaling.measured_scaling` returns a measured scale in the form that the model's pipelines read.

        Raises:
            UserError: The network's class cannot store a part of it (`scale_keys`).
        """
        scale: dict[str, Any] = {
            "scaling_factor": scaling_factor, "shift_factor": shift_factor, "latents_mean": latents_mean,
            "latents_std": latents_std,
        }  # fmt: skip
        places = self.scale_keys
        for key, value in scale.items():
            if key not in places and value != NO_SCALE[key]:
                known = ", ".join(places) or "none"
                raise UserError(f"{type(self.net).__name__} cannot store {key} {value}; of a scale it holds {known}")
        self._store_scale({key: scale[key] for key in places})
        mark_scaled_encoder(self)

    def _store_scale(self, scale: dict[str, Any]) -> None:
        """Write the values of all `scale_keys` into `net`; by default, into its configuration.

        The shift is a number even where diffusers' default is null: pipelines of SD3 and FLUX add it, others ignore it.
        """
        self.net.register_to_config(**scale)


def _blocks_without(parameter: nn.Parameter, module: nn.Module) -> Iterator[nn.Module]:
    """Yield the module, or the largest blocks of layers in it that do not have the parameter."""
    if isinstance(module, nn.ModuleList) or any(parameter is own for own in module.parameters()):
        for child in module.children():
            yield from _blocks_without(parameter, child)
    elif next(module.children(), None) is not None:
        yield module
