"""Initialization as a linear autoencoder: it averages the image to a thumbnail and enlarges it bilinearly.

Residual branches start at zero (as in Zhang et al., Fixup Initialization, arXiv 1901.09321), so that only a path of
convolutions of diffusers' encoder and decoder remains. Three of its channels carry red, green and blue: downsampling
convolutions average 2x2 pixels, upsampling convolutions interpolate. It does for `AutoencoderKL` what DC-AE's shortcuts
between space and channels do by architecture (Chen et al., arXiv 2410.10733): training starts with the details that a
thumbnail lacks and not with colours and brightness, which cost a network with group normalization its first hundreds of
steps. A hierarchical autoencoder starts as a pyramid of such thumbnails.

The path is linear in spite of the normalization and activation before each last convolution. Each group holds a colour
x and -x, and the constants ±c: its mean is 0, and its standard deviation is nearly that of the constants for every
image. And silu(a x) - silu(-a x) = a x.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ldm_ae.core.errors import UserError

if TYPE_CHECKING:
    from diffusers.models.resnet import ResnetBlock2D

GAIN = 4.0
"""Latents per pixel value. Pixel values of photos have a standard deviation of about 1/4, so latents have about 1."""
CONSTANT = 3.0
"""c, for pixel values in [-1, 1]: a group's standard deviation changes by a few per cent from image to image."""
_POWER = 0.25
"""Approximate mean square of a pixel value."""


@torch.no_grad()
def start_as_thumbnail(net: Any) -> None:
    """Change the weights of a `diffusers.AutoencoderKL` in place, so that it encodes to a thumbnail and enlarges it.

    Args:
        net: A network with at least as many latent channels as its images have, and SiLU.

    Raises:
        UserError: The network is of another kind, or its groups have fewer than four channels.
    """
    colours = _colours(net, net.config.latent_channels, "latent channels")
    zero_residual_branches(net)
    average(net.encoder, colours)
    enlarge(net.decoder, colours)
    net.decoder.conv_in.weight[:colours] /= GAIN
    for projection in (net.quant_conv, net.post_quant_conv):
        if projection is not None:
            nn.init.dirac_(projection.weight)
            nn.init.zeros_(projection.bias)


@torch.no_grad()
def start_as_pyramid(net: Any) -> None:
    """Change the weights of a `HierarchicalQuantizedAutoencoder` in place, so that its maps are a Laplacian pyramid.

    The coarsest map holds the smallest thumbnail, and each finer one what its thumbnail has beyond the enlarged coarser
    one (Burt and Adelson, The Laplacian Pyramid as a Compact Image Code, IEEE Trans. Commun. 31, 1983). Conditioners
    and upsamplers enlarge by the same interpolation: what a finer map subtracts, the decoder adds again, so that the
    untrained decoder enlarges the finest thumbnail and an error of a coarse code is in what the finer codes hold.
    Dimensions of a code beyond the colours start at zero, where they do not influence the choice of codes.

    Args:
        net: A network with at least as many dimensions of a code, and channels of features, as its images have, and
            SiLU.

    Raises:
        UserError: As `start_as_thumbnail`.
    """
    code = net.quantizers[0].codebook_dim
    colours = _colours(net, min(code, net.config.latent_channels), "codebook_dim and latent channels")
    zero_residual_branches(net)
    average(net.encoder, colours)
    for encoder in net.coarser_encoders:
        average(encoder, colours)
        encoder.conv_in.weight[:colours] /= GAIN
    one = torch.eye(colours)[..., None, None]
    for i, projection in enumerate(net.quant_convs):
        nn.init.zeros_(projection.weight)
        nn.init.zeros_(projection.bias)
        projection.weight[:colours, :colours] = one
        if i > 0:  # the other half of its input is what the coarser maps hold
            features = net.config.latent_channels
            projection.weight[:colours, features : features + colours] = -one
    for conditioner in net.conditioners:
        enlarge(conditioner, colours)
        _add_maps(conditioner.conv_in, colours, code, _centre(3) / GAIN)
        conditioner.conv_out.weight[:colours] *= GAIN
    linear = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
    for upsampler in net.upsamplers:
        nn.init.zeros_(upsampler.weight)
        nn.init.zeros_(upsampler.bias)
        for channel in range(upsampler.in_channels):
            upsampler.weight[channel, channel] = linear[:, None] * linear
    _add_maps(net.post_quant_conv, colours, code, torch.ones(1, 1))
    enlarge(net.decoder, colours)
    net.decoder.conv_in.weight[:colours] /= GAIN


def zero_residual_branches(net: nn.Module) -> None:
    """Let every ResNet block and every attention return its input, or the 1x1 convolution of it."""
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import ResnetBlock2D

    for module in net.modules():
        if isinstance(module, ResnetBlock2D):
            _zero(module.conv2)
        elif isinstance(module, Attention):
            _zero(cast(nn.Linear, module.to_out[0]))


def average(encoder: Any, colours: int) -> None:
    """Let a `diffusers` Encoder without residual branches output `GAIN` times the averages of its first channels."""
    down = [encoder.conv_in]
    for block in encoder.down_blocks:
        down += _path(block.resnets[0], block.downsamplers)
    taps = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]) / 4
    _carry(down, encoder.conv_norm_out, encoder.conv_out, colours, scale=GAIN, kernel=taps)


def enlarge(decoder: Any, colours: int) -> None:
    """Let a `diffusers` Decoder without residual branches enlarge its first channels bilinearly."""
    up = [decoder.conv_in]
    for block in decoder.up_blocks:
        up += _path(block.resnets[0], block.upsamplers)
    taps = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16
    _carry(up, decoder.conv_norm_out, decoder.conv_out, colours, scale=1.0, kernel=taps)


def _colours(net: Any, channels: int, words: str) -> int:
    """Return the channels of the images; UserError if fewer than these carry them, or the activation is not SiLU."""
    config = net.config
    colours = int(config.in_channels)
    if config.act_fn not in ("silu", "swish") or channels < colours:
        raise UserError(
            f"initialization: thumbnail needs act_fn silu and at least {colours} {words}, got {config.act_fn} "
            f"and {channels}; use initialization: default"
        )
    return colours


def _add_maps(convolution: nn.Conv2d, colours: int, code: int, taps: Tensor) -> None:
    """Let the first outputs be the sums of each colour over maps of `code` channels, times (k, k) `taps`."""
    convolution.weight[:colours] = 0.0
    for colour in range(colours):
        convolution.weight[colour, colour::code] = taps
    assert convolution.bias is not None
    convolution.bias[:colours] = 0.0


def _path(resnet: ResnetBlock2D, samplers: Any) -> list[nn.Conv2d]:
    """Return the convolutions of one block that no residual branch bypasses."""
    found = [] if resnet.conv_shortcut is None else [resnet.conv_shortcut]
    return found + ([] if samplers is None else [samplers[0].conv])


def _carry(
    path: list[nn.Conv2d], norm: nn.GroupNorm, last: nn.Conv2d, colours: int, *, scale: float, kernel: Tensor
) -> None:
    """Carry the first channels along a path and through its last normalization, and output them times `scale`.

    Args:
        path: Convolutions; the output of the last one is the input of `norm`.
        norm: The normalization before the activation.
        last: The convolution after the activation.
        colours: Number of channels that are carried.
        scale: Factor of these output channels.
        kernel: (3, 3), for the convolutions that change the resolution: those after the first that are not 1x1.
    """
    for i, convolution in enumerate(path):
        size = convolution.kernel_size[0]
        taps = kernel if i and size == 3 else _centre(size)
        signs: list[tuple[int, int, float]] = [(colour, colour, 1.0) for colour in range(colours)]
        if convolution is path[-1]:
            signs = pass_normalization(convolution, norm, last, colours, pairs=_pairs(norm, colours), scale=scale)
        assert convolution.bias is not None
        for row, colour, sign in signs:
            convolution.weight[row] = 0.0
            convolution.weight[row, colour] = sign * taps
            convolution.bias[row] = 0.0


def pass_normalization(
    before: nn.Conv2d,
    norm: nn.GroupNorm,
    after: nn.Conv2d,
    channels: int,
    *,
    pairs: int,
    constant: float = CONSTANT,
    power: float = _POWER,
    scale: float = 1.0,
) -> list[tuple[int, int, float]]:
    """Let channels pass a normalization and SiLU, each with its negative and beside constants.

    Args:
        before: Writes what is normalized; its rows of constants are set here, the returned ones are the caller's.
        norm: A normalization with weights 1 and biases 0.
        after: Reads what is activated; its first outputs become the channels.
        channels: Number of channels.
        pairs: Channels in each group, which repeats them where there are fewer.
        constant: The constants are this and its negative.
        power: Approximate mean square of a channel.
        scale: Factor of the outputs.

    Returns:
        (row of `before`, channel, sign) of each channel and its negative in each group.
    """
    members = norm.num_channels // norm.num_groups
    deviation = math.sqrt((2 * pairs * power + 2 * (members // 2 - pairs) * constant**2) / members)
    assert before.bias is not None
    assert after.bias is not None
    signs = []
    for group in range(norm.num_groups):
        first = group * members
        for pair in range(pairs):
            channel = (group * pairs + pair) % channels
            signs += [(first + 2 * pair, channel, 1.0), (first + 2 * pair + 1, channel, -1.0)]
        for pair in range(members // 2 - pairs):
            rows = slice(first + 2 * (pairs + pair), first + 2 * (pairs + pair) + 2)
            before.weight[rows] = 0.0
            before.bias[rows] = torch.tensor([constant, -constant])
        if members % 2:
            before.weight[first + members - 1] = before.bias[first + members - 1] = 0.0
    after.weight[:channels] = 0.0
    after.bias[:channels] = 0.0
    for channel in range(channels):
        places = [(row, sign) for row, found, sign in signs if found == channel]
        for row, sign in places:
            after.weight[channel, row] = sign * _centre(after.kernel_size[0]) * deviation * scale * 2 / len(places)
    return signs


def _pairs(norm: nn.GroupNorm, colours: int) -> int:
    """Return the number of colours, each with its negative, that fit into a group beside at least two constants.

    Raises:
        UserError: The groups are too small for the colours.
    """
    pairs = min(colours, (norm.num_channels // norm.num_groups - 2) // 2)
    if pairs < 1 or pairs * norm.num_groups < colours:
        raise UserError(
            f"initialization: thumbnail needs groups of at least 4 channels that hold {colours} colours together, got "
            f"{norm.num_channels} channels in {norm.num_groups} groups; use other widths or initialization: default"
        )
    return pairs


def _centre(size: int) -> Tensor:
    """Return a (size, size) kernel that is 1 in the middle and 0 elsewhere."""
    taps = torch.zeros(size, size)
    taps[size // 2, size // 2] = 1.0
    return taps


def _zero(layer: nn.Conv2d | nn.Linear) -> None:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
