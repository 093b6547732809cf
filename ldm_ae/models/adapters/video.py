"""Diffusers' autoencoders of video behind the project's interface, for images: videos of one frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from typing import Any, cast

import torch
from torch import Tensor, nn

from ldm_ae.core.errors import UserError, reason
from ldm_ae.images.pixels import PixelSpec, of_channels
from ldm_ae.models.adapters._opening import open_pretrained
from ldm_ae.models.adapters._video_examples import EXAMPLES
from ldm_ae.models.adapters._video_networks import VIDEO_NETWORKS, PoolInFloat32, VideoNetwork
from ldm_ae.models.interface import Autoencoder
from ldm_ae.models.loading.networks import class_name_of
from ldm_ae.models.posteriors import DeterministicPosterior, GaussianPosterior, Posterior
from ldm_ae.models.spec import AutoencoderSpec, LatentSpec

_VECTORS = ("latents_mean", "latents_std")


class VideoAutoencoder(Autoencoder):
    """An autoencoder of video that encodes images: Qwen-Image's, Wan's, HunyuanVideo's, and others of diffusers.

    An image (B, 3, H, W) is a video of one frame; its latents (B, C, h, w) are those of this frame. Where the class has
    an alpha channel (Qwen-Image 2.1), images are opaque, and the alpha of reconstructions is dropped.

    Args:
        pretrained: A model folder of one of `class_names`, a run or a checkpoint of one, or a name on the Hugging Face
            hub. `network` and `arguments` are then ignored.
        network: Name of the diffusers class of a new network with random weights.
        arguments: Arguments of that class; without any, the network has the sizes of the published model.
    """

    short_names = ("video",)

    class_names = tuple(VIDEO_NETWORKS)
    decoder_names = ("decoder.", "post_quant_conv.")

    _read: tuple[object, tuple[float, ...], tuple[float, ...]] | None = None

    def __init__(
        self,
        *,
        pretrained: str | None = None,
        network: str = "AutoencoderKLWan",
        arguments: dict[str, Any] | None = None,
    ):
        super().__init__()
        if pretrained is None:
            self.net = _build(network, arguments or {})
            _ = self.spec  # checks the configuration
        else:
            open_pretrained(self, _diffusers_class(class_name_of(pretrained)), pretrained)

    @classmethod
    def network_class(cls, class_name: str) -> Any:
        return _diffusers_class(class_name)

    @classmethod
    def example(cls, class_name: str) -> VideoAutoencoder:
        return cls(network=class_name, arguments=EXAMPLES[class_name])

    @property
    def _video(self) -> VideoNetwork:
        names = (cls.__name__ for cls in type(self.net).__mro__)
        return next(VIDEO_NETWORKS[name] for name in names if name in VIDEO_NETWORKS)

    # ------------------------------------------------------------------------------------------------------- interface

    @property
    def spec(self) -> AutoencoderSpec:
        video, config = self._video, self.net.config
        if (why := video.refusal(config)) is not None:
            raise UserError(f"this {type(self.net).__name__} cannot be used for images: {why}")
        channels = config[video.channels]
        mean, std = self._vectors(channels)
        latents = LatentSpec(
            channels=channels,
            downsample_factor=video.factor(self.net),
            scaling_factor=config.scaling_factor if "scaling_factor" in video.scale_keys else 1.0,
            latents_mean=mean,
            latents_std=std,
        )
        return AutoencoderSpec(pixels=self._pixels(), latents=latents)

    def encode(self, pixel_values: Tensor) -> Posterior:
        self.require_images(pixel_values)
        frames = pixel_values.to(self.dtype)
        if self._has_alpha:
            frames = torch.cat([frames, torch.ones_like(frames[:, :1])], dim=1)
        encoded = self._on_frames(self._video.encode, frames)
        return GaussianPosterior(encoded) if self.has_moments else DeterministicPosterior(encoded.float())

    def decode(self, latents: Tensor) -> Tensor:
        self.require_latents(latents)
        return self._on_frames(self._video.decode, latents.to(self.dtype))[:, :3].float()

    # ---------------------------------------------------------------------------------------------------- capabilities

    @property
    def has_moments(self) -> bool:  # type: ignore[override]
        return self._video.gaussian

    @property
    def frozen_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return self._video.names_of_unused(self.net)

    @property
    def last_layer(self) -> nn.Parameter:
        return cast(nn.Parameter, self.net.decoder.get_submodule(self._video.last_layer).weight)

    @property
    def encoder_last_layer(self) -> nn.Parameter:
        name = self._video.encoder_last_layer or self._video.last_layer
        return cast(nn.Parameter, self.net.encoder.get_submodule(name).weight)

    @property
    def has_gradient_checkpointing(self) -> bool:
        return self._video.checkpointing and super().has_gradient_checkpointing

    def enable_gradient_checkpointing(self) -> None:
        if not self._video.checkpointing:
            raise ValueError(f"{type(self.net).__name__} does not support gradient checkpointing")
        super().enable_gradient_checkpointing()

    # ----------------------------------------------------------------------------------------------------------- scale

    @property
    def scale_keys(self) -> tuple[str, ...]:
        return self._video.scale_keys

    @property
    def scale_buffers(self) -> tuple[str, ...]:  # type: ignore[override]
        return _VECTORS if self._video.scale_in_buffers else ()

    def _vectors(self, channels: int) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
        """Return mean and standard deviation; those in buffers are read again only when a buffer was changed."""
        if "latents_mean" not in self._video.scale_keys:
            return None, None
        if not self._video.scale_in_buffers:
            mean, std = (_of_first_frame(self.net.config[key], channels) for key in _VECTORS)
            return mean, std
        buffers = [getattr(self.net, key) for key in _VECTORS]
        # Tensors that were made in inference mode do not count their changes.
        state = [None if buffer.is_inference() else (id(buffer), buffer._version) for buffer in buffers]
        if self._read is None or self._read[0] != state or None in state:
            self._read = (state, tuple(buffers[0].tolist()), tuple(buffers[1].tolist()))
        return self._read[1:]

    @torch.no_grad()
    def _store_scale(self, scale: dict[str, Any]) -> None:
        """Store vectors that change nothing in place of none: the pipelines always read them."""
        channels = self.net.config[self._video.channels]
        nothing = {"latents_mean": [0.0] * channels, "latents_std": [1.0] * channels}
        scale = {key: nothing[key] if value is None else value for key, value in scale.items()}
        for key in self.scale_buffers:
            buffer = getattr(self.net, key)
            buffer.copy_(torch.tensor(scale.pop(key)))
        self.net.register_to_config(**scale)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VideoAutoencoder:
        """Move and cast all but the scale, which is only moved, so that it is not rounded."""
        before = {key: getattr(self.net, key) for key in self.scale_buffers}
        super()._apply(fn, recurse)
        for key, buffer in before.items():
            moved = getattr(self.net, key)
            if moved.dtype != buffer.dtype:
                setattr(self.net, key, buffer.to(moved.device))
        return self

    # ---------------------------------------------------------------------------------------------------------- shapes

    @property
    def _has_alpha(self) -> bool:
        return self._video.alpha and self._video.image_channels(self.net.config) == (4, 4)

    def _pixels(self) -> PixelSpec:
        """The images of both ends, which must be equal; UserError if the project does not support such images."""
        name = type(self.net).__name__
        taken, given = self._video.image_channels(self.net.config)
        if taken != given:
            raise UserError(
                f"{name}: the encoder takes images of {taken} channels, and the decoder gives {given}; they must agree"
            )
        return of_channels(3 if self._has_alpha else taken).require_supported(name)

    def _on_frames(self, call: Any, values: Tensor) -> Tensor:
        """Call a function of videos on images or latents without the axis of time."""
        half_on_cpu = values.device.type == "cpu" and values.dtype != torch.float32
        with PoolInFloat32() if half_on_cpu else nullcontext():
            if not self._video.has_frames:
                return cast(Tensor, call(self.net, values))
            return cast(Tensor, call(self.net, values[:, :, None])[:, :, 0])


def _of_first_frame(values: Sequence[float] | None, channels: int) -> tuple[float, ...] | None:
    """Return one number for each channel of a vector that may have some for each channel and frame, as Cosmos's has."""
    if values is None:
        return None
    frames = len(values) // channels if len(values) % channels == 0 else 1
    return tuple(values[::frames])


def _diffusers_class(name: str) -> type[Any]:
    """Return a class of diffusers; UserError where the installed version does not have it."""
    import diffusers  # takes seconds

    found = getattr(diffusers, name, None)
    if found is None:
        needs = VIDEO_NETWORKS[name].needs
        raise UserError(
            f"{name} needs diffusers {needs} or newer, and {version('diffusers')} is installed; upgrade it: "
            "pip install --upgrade diffusers"
        )
    return cast(type[Any], found)


def _build(name: str, arguments: dict[str, Any]) -> Any:
    if name not in VIDEO_NETWORKS:
        raise UserError(f"network: expected one of {', '.join(VIDEO_NETWORKS)}, got {name}")
    cls = _diffusers_class(name)
    try:
        return cls(**arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"{name} cannot be built with these arguments: {reason(error)}") from error
