"""The channels of a network's images: recorded in its configuration, and changed in its first and last convolution.

A network for RGB starts one for other channels as in AlphaVAE (arXiv 2507.09308): the weights of channels that both
have are copied, new input channels have weights of zero, so that they do not change the latents, and new output
channels are the mean of the colours; alpha is opaque. Where no name is common, as from RGB to grey, each new input
channel takes an equal share of the summed weights, and each output channel the mean: an image whose channels are all
equal is encoded and decoded as the RGB image of this grey.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.images.pixels import PixelSpec, of_channels

PIXELS = "_pixels"
"""Configuration key of images other than RGB of 8 bits, `PixelSpec.to_json`; diffusers ignores it."""
ALPHA = "alpha"


def pixels_of(net: Any) -> PixelSpec:
    """Return the images of both ends of a network of diffusers, by its configuration.

    Raises:
        UserError: The ends differ, the recorded images have another number of channels, or there is no record and the
            network is not one for RGB.
    """
    config, name = net.config, type(net).__name__
    taken = config.in_channels
    given = config.get("out_channels", taken)
    if given != taken:
        raise UserError(f"{name}: in_channels {taken} differ from out_channels {given}; they must be equal")
    recorded = config.get(PIXELS)
    if recorded is None:
        return of_channels(taken).require_supported(name)
    pixels = PixelSpec.from_json(recorded)
    if pixels.channels != taken:
        raise UserError(f"{name}: {PIXELS} is {pixels}, but in_channels is {taken}; they must be equal")
    return pixels


def record_pixels(net: Any, pixels: PixelSpec) -> None:
    """Record the images in the configuration of a network with as many channels."""
    if pixels != of_channels(pixels.channels) or PIXELS in net.config:
        net.register_to_config(**{PIXELS: pixels.to_json()})


def recorded_pixels(net: Any) -> PixelSpec:
    """Return `pixels_of`; without a record, the channels of other networks than RGB's are without a meaning."""
    taken = net.config.in_channels
    if net.config.get(PIXELS) is not None or taken == net.config.get("out_channels", taken) == 3:
        return pixels_of(net)
    return PixelSpec(channels=taken, meaning="channels")


@torch.no_grad()
def change_channels(net: Any, wanted: dict[str, Any] | str | None) -> None:
    """Give a network with `encoder.conv_in` and `decoder.conv_out` other images, by the rules above.

    Args:
        net: The network, changed in place.
        wanted: The name of a meaning, or the fields of a `PixelSpec`; None keeps the network's own. Without a record in
            the network, they say what its channels mean where their number is the same.

    Raises:
        UserError: `wanted` is not valid, or the class of the network has other first and last layers.
    """
    if wanted is None:
        return
    pixels = PixelSpec.from_json(wanted)
    source = recorded_pixels(net)
    known = net.config.get(PIXELS) is not None or source.channels == 3
    if source.names != pixels.names and not (source.channels == pixels.channels and not known):
        encoder, decoder = net.encoder, net.decoder
        if not isinstance(getattr(encoder, "conv_in", None), nn.Conv2d) or not isinstance(
            getattr(decoder, "conv_out", None), nn.Conv2d
        ):
            raise UserError(f"{type(net).__name__} takes images that are {source}; pixels cannot be {pixels}")
        first, last = encoder.conv_in, decoder.conv_out
        encoder.conv_in = _copy(first, _input_weight(first.weight, source, pixels), first.bias)
        decoder.conv_out = _copy(last, *_output(last, source, pixels))
        ends = {"in_channels": pixels.channels, "out_channels": pixels.channels}
        net.register_to_config(**{name: value for name, value in ends.items() if name in net.config})
    record_pixels(net, pixels)


def _input_weight(weight: Tensor, source: PixelSpec, target: PixelSpec) -> Tensor:
    """Return the weight (C, target channels, k, k) of the first convolution from (C, source channels, k, k)."""
    common = set(source.names) & set(target.names)
    if not common:
        colours = [i for i, name in enumerate(source.names) if name != ALPHA]
        return (weight[:, colours].sum(1, keepdim=True) / target.channels).repeat(1, target.channels, 1, 1)
    new = weight.new_zeros(weight.shape[0], target.channels, *weight.shape[2:])
    for place, name in enumerate(target.names):
        if name in common:
            new[:, place] = weight[:, source.names.index(name)]
    return new


def _output(last: nn.Conv2d, source: PixelSpec, target: PixelSpec) -> tuple[Tensor, Tensor]:
    """Return weight (target channels, C, k, k) and bias of the last convolution."""
    assert last.bias is not None
    colours = [i for i, name in enumerate(source.names) if name != ALPHA]
    weights, biases = [], []
    for name in target.names:
        if name in source.names:
            place = source.names.index(name)
            weights.append(last.weight[place])
            biases.append(last.bias[place])
        elif name == ALPHA and target.meaning == "rgba":
            weights.append(torch.zeros_like(last.weight[0]))
            biases.append(torch.ones_like(last.bias[0]))
        else:
            weights.append(last.weight[colours].mean(0))
            biases.append(last.bias[colours].mean())
    return torch.stack(weights), torch.stack(biases)


def _copy(layer: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """Return a copy of a convolution with another weight and bias, and as many channels as they have."""
    new = nn.Conv2d(
        weight.shape[1], weight.shape[0], layer.kernel_size, stride=layer.stride, padding=layer.padding,  # type: ignore[arg-type]
        bias=bias is not None, device=weight.device, dtype=weight.dtype,
    )  # fmt: skip
    new.weight.copy_(weight)
    if bias is not None and new.bias is not None:
        new.bias.copy_(bias)
    return new.train(layer.training)
