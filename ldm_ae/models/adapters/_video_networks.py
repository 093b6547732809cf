"""How each of diffusers' video classes encodes and decodes one frame, and where its pipeline finds the scale.

A video class encodes (B, 3, T, H, W). With T = 1 the classes of this table give moments (B, 2C, 1, h, w), and decode
latents to one frame. Each function calls the network's parts as the class's own `encode` and `decode` do for one frame,
without tiling, slicing and clamping. No cache outlives a call, so that calls do not depend on each other.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Call = Callable[[Any, Tensor], Tensor]
_one_caller = threading.Lock()
"""Held while a network runs whose modules keep frames between calls."""


@dataclass(frozen=True, kw_only=True)
class VideoNetwork:
    """One class of diffusers."""

    encode: Call
    """From the network and frames (B, c, 1, H, W) to moments (B, 2C, 1, h, w), or to latents if not `gaussian`."""
    decode: Call
    """From the network and latents (B, C, 1, h, w) to frames (B, c, 1, H, W), not clamped."""
    factor: Callable[[Any], int]
    """H / h of a network."""
    channels: str = "latent_channels"
    """Configuration key of C."""
    image_channels: Callable[[Any], tuple[int, int]] = lambda config: (config.in_channels, config.out_channels)
    """The channels c of the input and of the output, from the configuration."""
    alpha: bool = False
    """Whether a fourth channel is opacity."""
    gaussian: bool = True
    """Whether the class's posterior has a variance."""
    has_frames: bool = True
    """False where tensors have no axis T."""
    scale_keys: tuple[str, ...] = ()
    """The parts of a scale that the class's pipeline reads."""
    scale_in_buffers: bool = False
    """Whether the vectors are buffers of the network and not in its configuration."""
    unused: str | None = None
    """Pattern of the names of parameters that one frame does not use."""
    last_layer: str = "conv_out"
    """Module of the decoder."""
    encoder_last_layer: str | None = None
    """Module of the encoder; None where it has the same name as the decoder's."""
    checkpointing: bool = True
    """Whether the class's gradient checkpointing works with one frame, where it has it."""
    refusal: Callable[[Any], str | None] = lambda _: None
    """Why a configuration cannot encode or decode one frame, if so."""
    needs: str | None = None
    """The first version of diffusers with the class, if it is above the oldest that this package allows."""

    def names_of_unused(self, net: nn.Module) -> tuple[str, ...]:
        """Return the names of the network's parameters that one frame does not use."""
        if self.unused is None:
            return ()
        return tuple(name for name, _ in net.named_parameters() if re.search(self.unused, name))


class PoolInFloat32(TorchFunctionMode):
    """Average over volumes in float32 within the context: PyTorch has no half precision for it on a CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not nn.functional.avg_pool3d:
            return func(*args, **(kwargs or {}))
        values, *others = args
        return func(values.float(), *others, **(kwargs or {})).to(values.dtype)


class _OneFrameConvolutions(TorchFunctionMode):
    """Within the context, convolve one frame in two dimensions where the two frames before it are zeros.

    Wan's and Qwen-Image's causal convolutions, of three frames, pad with these zeros, so that only the last temporal
    slice of a kernel has an effect. The results differ in rounding, and take about a third of the time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._frame: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.pad and _pads_two_frames(*args, **kwargs):
            self._frame = func(args[0], list(args[1][:4]), **kwargs)
            return self._frame
        if self._frame is None:
            return func(*args, **kwargs)
        frame, self._frame = self._frame, None
        assert func is nn.functional.conv3d, "a padded frame goes to a convolution"
        values, weight, bias, stride, padding, dilation, groups = args
        assert values is frame, "a padded frame goes to a convolution"
        assert (weight.shape[2], stride[0], padding[0], dilation[0]) == (3, 1, 0, 1), "a causal convolution"
        options = (bias, stride[1:], padding[1:], dilation[1:], groups)
        return nn.functional.conv2d(frame[:, :, 0], weight[:, :, -1], *options)[:, :, None]


def _pads_two_frames(values: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> bool:
    """Return whether `values` are one frame, and the padding puts two of zeros before it."""
    one_frame = values.ndim == 5 and values.shape[2] == 1
    return one_frame and mode == "constant" and not value and list(pad[4:]) == [2, 0]


# --------------------------------------------------------------------------------------------------- factors and shapes


def _by_levels(key: str) -> Callable[[Any], int]:
    """Return a function that gives the factor of a network whose levels but one halve the resolution."""
    return lambda net: int(2 ** (len(net.config[key]) - 1))


def _of_wan(net: Any) -> int:
    """The configuration's `scale_factor_spatial` does not shape the network."""
    return int(2 ** (len(net.config.dim_mult) - 1) * (net.config.get("patch_size") or 1))


def _of_ltx(net: Any) -> int:
    """Downsamplers named `temporal` keep height and width."""
    config = net.config
    halvings = [scaled and kind != "temporal" for scaled, kind in
                zip(config.spatio_temporal_scaling, config.downsample_type, strict=False)]  # fmt: skip
    return int(config.patch_size * 2 ** sum(halvings))


def _by_ratio(net: Any) -> int:
    return int(net.config.spatial_compression_ratio)


def _patched(config: Any) -> tuple[int, int]:
    """Wan 2.2 packs p x p pixels into channels."""
    pixels = (config.get("patch_size") or 1) ** 2
    divisible = config.in_channels % pixels == 0 == config.out_channels % pixels
    taken, given = (config.in_channels // pixels, config.out_channels // pixels) if divisible else (0, 0)
    return taken, given


# ---------------------------------------------------------------------------------------------------- encode and decode


def _quant_encode(net: Any, frames: Tensor) -> Tensor:
    return cast(Tensor, net.quant_conv(net.encoder(frames)))


def _quant_decode(net: Any, latents: Tensor) -> Tensor:
    return cast(Tensor, net.decoder(net.post_quant_conv(latents)))


def _plain_encode(net: Any, frames: Tensor) -> Tensor:
    return cast(Tensor, net.encoder(frames))


def _plain_decode(net: Any, latents: Tensor) -> Tensor:
    return cast(Tensor, net.decoder(latents))


def _each(call: Call) -> Call:
    """Return `call` for one image at a time: HunyuanVideo15's attention accepts no batch."""
    return lambda net, values: torch.cat([call(net, value) for value in values.split(1)])


def _wan_encode(net: Any, frames: Tensor) -> Tensor:
    """Encode without a cache: convolutions pad with zeros and time is not resampled, as for a video's first frame."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import patchify

    with _OneFrameConvolutions():
        return _quant_encode(net, patchify(frames, net.config.get("patch_size") or 1))


def _wan_decode(net: Any, latents: Tensor) -> Tensor:
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    with _OneFrameConvolutions():
        frames = net.decoder(net.post_quant_conv(latents), first_chunk=True)
    return cast(Tensor, unpatchify(frames, net.config.get("patch_size") or 1))


def _qwen_encode(net: Any, frames: Tensor) -> Tensor:
    with _OneFrameConvolutions():
        return _quant_encode(net, frames)


def _qwen_decode(net: Any, latents: Tensor) -> Tensor:
    with _OneFrameConvolutions():
        return _quant_decode(net, latents)


def _cogvideox_encode(net: Any, frames: Tensor) -> Tensor:
    moments, _ = net.encoder(frames)
    return cast(Tensor, moments if net.quant_conv is None else net.quant_conv(moments))


def _cogvideox_decode(net: Any, latents: Tensor) -> Tensor:
    frames, _ = net.decoder(latents if net.post_quant_conv is None else net.post_quant_conv(latents))
    return cast(Tensor, frames)


def _mochi_encode(net: Any, frames: Tensor) -> Tensor:
    moments, _ = net.encoder(frames)
    return cast(Tensor, moments)


def _mochi_decode(net: Any, latents: Tensor) -> Tensor:
    """One latent frame becomes several, of which the class keeps the last."""
    frames, _ = net.decoder(latents)
    return cast(Tensor, frames[:, :, -1:])


def _ltx_decode(net: Any, latents: Tensor) -> Tensor:
    """A decoder with a timestep gets 0, the default of LTX's pipelines, at which they add no noise to the latents."""
    timestep = latents.new_zeros(len(latents)) if net.config.timestep_conditioning else None
    return cast(Tensor, net.decoder(latents, timestep))


def _kvae_video_encode(net: Any, frames: Tensor) -> Tensor:
    """The class drops the variance that its encoder gives."""
    mean, _ = net.encoder(frames, net._make_encoder_cache()).chunk(2, dim=1)
    return cast(Tensor, mean)


def _kvae_video_decode(net: Any, latents: Tensor) -> Tensor:
    return cast(Tensor, net.decoder(latents, net._make_decoder_cache()))


def _kandinsky_encode(net: Any, frames: Tensor) -> Tensor:
    """The network was trained on levels / 128 - 1; its pipeline converts from levels / 127.5 - 1."""
    return cast(Tensor, net.encoder((frames + 1) * (127.5 / 128) - 1, net.encoder.make_cache()))


def _kandinsky_decode(net: Any, latents: Tensor) -> Tensor:
    frames = net.decoder(latents, net.decoder.make_cache())
    return cast(Tensor, (frames + 1) * (128 / 127.5) - 1)


def _temporal_decode(net: Any, latents: Tensor) -> Tensor:
    """Stable Video Diffusion's decoder takes a batch of frames; each image is a video of its own."""
    return cast(Tensor, net.decoder(latents, latents.new_zeros(len(latents), 1), num_frames=1))


@contextmanager
def _forgetting(clear: Callable[[], None]) -> Iterator[None]:
    """Let one caller at a time use modules that keep frames, and clear them before and after."""
    with _one_caller:
        clear()
        try:
            yield
        finally:
            clear()


def _magvit_encode(net: Any, frames: Tensor) -> Tensor:
    with _forgetting(net._clear_conv_cache):
        return _quant_encode(net, frames)


def _magvit_decode(net: Any, latents: Tensor) -> Tensor:
    with _forgetting(net._clear_conv_cache):
        return _quant_decode(net, latents)


def _clear_vidtok(net: Any) -> None:
    net._empty_causal_cached(net)
    net._set_first_chunk(True)


def _vidtok_encode(net: Any, frames: Tensor) -> Tensor:
    """Before a video's first frame stand copies of it, so that it fills one latent frame."""
    with _forgetting(lambda: _clear_vidtok(net)):
        return cast(Tensor, net.encoder(frames.repeat(1, 1, net.temporal_compression_ratio, 1, 1)))


def _vidtok_decode(net: Any, latents: Tensor) -> Tensor:
    with _forgetting(lambda: _clear_vidtok(net)):
        return cast(Tensor, net.decoder(latents)[:, :, -1:])


# ------------------------------------------------------------------------------------------------------------- refusals


def _refuse_noise(config: Any) -> str | None:
    injected = config.decoder_inject_noise
    if injected if isinstance(injected, bool) else any(injected):
        return "its decoder adds random noise (decoder_inject_noise), so that the same latents give different images"
    return None


def _refuse_vidtok(config: Any) -> str | None:
    if config.regularizer != "kl":
        return f"expected the regularizer 'kl', got {config.regularizer!r}, whose latents are codes"
    return None if config.is_causal else "it is not causal, and cannot encode a single frame"


# ------------------------------------------------------------------------------------------------------------ the table

_VECTORS = ("latents_mean", "latents_std")
_FACTOR = ("scaling_factor",)
_WAN: dict[str, Any] = {"encode": _wan_encode, "decode": _wan_decode, "factor": _of_wan, "channels": "z_dim",
                        "image_channels": _patched, "scale_keys": _VECTORS, "unused": r"\.time_conv\."}  # fmt: skip
_HUNYUAN: dict[str, Any] = {"factor": _by_ratio, "scale_keys": _FACTOR, "last_layer": "conv_out.conv"}
_LTX: dict[str, Any] = {"encode": _plain_encode, "decode": _ltx_decode, "factor": _of_ltx,
                        "scale_keys": (*_FACTOR, *_VECTORS), "scale_in_buffers": True, "refusal": _refuse_noise,
                        "last_layer": "conv_out.conv"}  # fmt: skip

VIDEO_NETWORKS: dict[str, VideoNetwork] = {
    "AutoencoderKLCogVideoX": VideoNetwork(
        encode=_cogvideox_encode, decode=_cogvideox_decode, factor=_by_levels("block_out_channels"), scale_keys=_FACTOR,
        last_layer="conv_out.conv",
    ),
    "AutoencoderKLCosmos": VideoNetwork(
        encode=_quant_encode, decode=_quant_decode, factor=_by_ratio, gaussian=False, scale_keys=_VECTORS,
        last_layer="conv_out.conv_t",
    ),
    "AutoencoderKLHunyuanImageRefiner": VideoNetwork(encode=_plain_encode, decode=_plain_decode, **_HUNYUAN),
    "AutoencoderKLHunyuanVideo": VideoNetwork(encode=_quant_encode, decode=_quant_decode, **_HUNYUAN),
    "AutoencoderKLHunyuanVideo15": VideoNetwork(encode=_each(_plain_encode), decode=_each(_plain_decode), **_HUNYUAN),
    "AutoencoderKLKVAE": VideoNetwork(
        encode=_plain_encode, decode=_plain_decode, factor=_by_levels("ch_mult"), channels="z_channels",
        image_channels=lambda config: (config.in_channels, config.in_channels), has_frames=False,
    ),
    "AutoencoderKLKVAEVideo": VideoNetwork(
        encode=_kvae_video_encode, decode=_kvae_video_decode, factor=_by_levels("ch_mult"), channels="z_channels",
        image_channels=lambda config: (config.in_channels, config.out_ch), gaussian=False, last_layer="conv_out.conv",
        checkpointing=False,
    ),
    "AutoencoderKLLTX2Video": VideoNetwork(**_LTX),
    "AutoencoderKLLTXVideo": VideoNetwork(**_LTX),
    "AutoencoderKLMagvit": VideoNetwork(
        encode=_magvit_encode, decode=_magvit_decode, factor=_by_levels("block_out_channels"), scale_keys=_FACTOR,
    ),
    "AutoencoderKLMochi": VideoNetwork(
        encode=_mochi_encode, decode=_mochi_decode, factor=lambda net: prod(net.config.spatial_expansions),
        # The encoder makes 15 channels of RGB, by Fourier features.
        image_channels=lambda config: (3, config.out_channels), scale_keys=(*_FACTOR, *_VECTORS),
        # Attention over the time of one frame returns its values.
        unused=r"^encoder\..*\.attentions\..*\.to_[qk]\.", last_layer="proj_out",
    ),
    "AutoencoderKLQwenImage": VideoNetwork(
        encode=_qwen_encode, decode=_qwen_decode, factor=_of_wan, channels="z_dim", alpha=True,
        image_channels=lambda config: (config.get("input_channels", 3),) * 2, scale_keys=_VECTORS,
        unused=r"\.time_conv\.",
    ),
    "AutoencoderKLQwenImage21": VideoNetwork(alpha=True, needs="0.41", **_WAN),
    "AutoencoderKLTemporalDecoder": VideoNetwork(
        encode=_quant_encode, decode=_temporal_decode, factor=_by_levels("block_out_channels"), has_frames=False,
        scale_keys=_FACTOR, last_layer="time_conv_out", encoder_last_layer="conv_out",
    ),
    "AutoencoderKLWan": VideoNetwork(**_WAN),
    "AutoencoderVidTok": VideoNetwork(
        encode=_vidtok_encode, decode=_vidtok_decode, factor=lambda net: int(2 ** len(net.encoder.spatial_ds)),
        channels="z_channels", refusal=_refuse_vidtok, last_layer="conv_out.conv",
    ),
    "Kandinsky6SRVAE": VideoNetwork(
        encode=_kandinsky_encode, decode=_kandinsky_decode, factor=_by_levels("encoder_block_out_channels"),
        scale_keys=_FACTOR,
        last_layer="conv_out.conv", needs="0.42",
    ),
}  # fmt: skip
"""By the `_class_name` of a model folder."""
