"""Write a narrower copy of an autoencoder, or one with more latent channels, as a start for training.

    python scripts/resize_model.py kl-f8c4-small OUT --widths 32 64 128 128
    python scripts/resize_model.py OUT MORE --latent-channels 16 --images photos:train
    ldm-ae train --config CONFIG --model.init_args.pretrained MORE

For AutoencoderKL and VQModel folders without attention. With fewer channels, each normalization group keeps those that
the next layers read most; hidden channels of each block are chosen apart from those of the shortcuts. Where two levels
have the same width now, the convolution between them is lost, and the copy begins further from the original. With more
latent channels, the encoder starts anew, as a discrete cosine transform of each block of pixels in opponent colours,
and the decoder reads the old latents from the new ones by linear regression over the images. Both copies have to be
trained: by themselves they are worse than the original.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor, nn
from torch.nn import functional

from ldm_ae.data import EvaluationLoader, ImageTransform, open_source
from ldm_ae.losses.reconstruction.opponent import AXES
from ldm_ae.models.adapters.initialization import pass_normalization, zero_residual_branches
from ldm_ae.models.loading.places import model_place

COLOUR_WEIGHTS = (1.0, 0.5, 0.43)
"""Weights of grey, red against blue and magenta against green in the choice of functions: 11, 3 and 2 of 16."""
CONSTANT = 5.0
"""Values beside standardized latents in a normalization group, whose deviation they keep nearly the same."""
LOG_VARIANCE = -10.0
SIZE = 192
NEW_LATENTS = 0.1
"""Scale of the random weights by which the decoder reads new latents beside the regression."""


def channel_space(name: str, dim: int, levels: int) -> str | None:
    """Return the name of the channels along a dimension of a parameter, those of latents and images excepted.

    Parameters along one space of channels keep the same ones. A space is a level of the encoder or decoder, such as
    `encoder.3`, or the hidden channels of a block.
    """
    layer, _, _ = name.rpartition(".")
    part, _, rest = layer.partition(".")
    if part not in ("encoder", "decoder"):
        return None
    words = rest.split(".")
    reads = dim == 1
    first, last = f"{part}.0", f"{part}.{levels - 1}"
    if words[0] in ("conv_in", "conv_out", "conv_norm_out"):
        is_image = words[0] == ("conv_in" if part == "encoder" else "conv_out")
        wide = first if is_image or (part, words[0]) == ("decoder", "conv_norm_out") else last
        outside = words[0] != "conv_norm_out" and reads == (words[0] == "conv_in")
        return None if outside else wide
    if words[0] == "mid_block":
        entry = level = last
    else:
        index = int(words[1])
        position, above = (index, index - 1) if part == "encoder" else (levels - 1 - index, levels - index)
        level = f"{part}.{position}"
        entry = f"{part}.{above}" if words[2:4] == ["resnets", "0"] and index > 0 else level
    kind = words[-1]
    hidden = f"{part}.{'.'.join(words[:-1])}.hidden"
    spaces = {
        "norm1": (entry, entry), "conv1": (hidden, entry), "norm2": (hidden, hidden), "conv2": (level, hidden),
        "conv_shortcut": (level, entry), "conv": (level, level),
    }  # fmt: skip
    return spaces[kind][1 if reads else 0]


def importance(weights: dict[str, Tensor], space: str, levels: int) -> Tensor:
    """Return the energy with which layers read each channel of a space, after the scales of its normalizations."""
    energy: Tensor | int = 0
    for name, weight in weights.items():
        if weight.dim() == 4 and channel_space(name, 1, levels) == space:
            read = weight.square().sum(dim=(0, 2, 3))
            norm = name.replace("conv1", "norm1").replace("conv2", "norm2").replace("conv_out", "conv_norm_out")
            scaled = norm != name and norm in weights
            energy = energy + read * (weights[norm].square() if scaled else 1)
    assert isinstance(energy, Tensor), space
    return energy


def kept_channels(energy: Tensor, width: int, groups: int) -> Tensor:
    """Return the indices of the `width` channels that are read most, equally many of each normalization group."""
    chosen = energy.view(groups, -1).topk(width // groups, dim=1).indices.sort(dim=1).values
    return (chosen + torch.arange(groups)[:, None] * (len(energy) // groups)).flatten()


def narrowed(original: Any, widths: list[int]) -> Any:
    """Return a copy of an AutoencoderKL or VQModel with other widths, each at most the original's."""
    config = dict(original.config)
    copy = type(original).from_config(config | {"block_out_channels": widths})
    weights, result = original.state_dict(), copy.state_dict()
    kept: dict[str, Tensor] = {}
    for name, target in result.items():
        value = weights[name]
        for dim in range(min(2, value.dim())):
            space = channel_space(name, dim, len(widths))
            if space is None or value.shape[dim] == target.shape[dim]:
                continue
            if space not in kept:
                energy = importance(weights, space, len(widths))
                kept[space] = kept_channels(energy, target.shape[dim], config["norm_num_groups"])
            value = value.index_select(dim, kept[space])
        result[name] = value
    copy.load_state_dict(result)
    return copy


def cosine_functions(channels: int, factor: int) -> Tensor:
    """Return (3 factor², channels): orthonormal functions of a block, in the order of their usual power in photos."""
    places = torch.arange(factor)
    cosines = torch.cos(math.pi * (places[:, None] + 0.5) * places / factor) * math.sqrt(2 / factor)
    cosines[:, 0] /= math.sqrt(2)
    functions = [
        (weight / (1 + 1.7 * math.hypot(v, h)), torch.einsum("c,y,x->cyx", AXES[axis], cosines[:, v], cosines[:, h]))
        for axis, weight in enumerate(COLOUR_WEIGHTS)
        for v in range(factor)
        for h in range(factor)
    ]
    functions.sort(key=lambda function: -function[0])
    return torch.stack([values.flatten() for _, values in functions[:channels]], dim=1)


def blocks(pixel_values: Tensor, factor: int) -> Tensor:
    """Return (N, 3 factor²), the blocks of (B, 3, H, W)."""
    return functional.unfold(pixel_values, factor, stride=factor).transpose(1, 2).flatten(0, 1)


@torch.no_grad()
def start_as_transform(net: Any, functions: Tensor, mean: Tensor, std: Tensor) -> None:
    """Let an encoder return (block - mean) · functions / std, with residual branches that start at zero.

    Downsampling convolutions gather the pixels of a block in their channels. The last one computes the latents, with
    both signs and beside constants, so that they pass through normalization and activation as in
    `ldm_ae.models.adapters.initialization`.

    Args:
        net: An AutoencoderKL, changed in place. Its widths have room for the pixels that each downsampling gathers.
        functions: (3f², C).
        mean: (3f²,).
        std: (C,).
    """
    encoder = net.encoder
    zero_residual_branches(encoder)
    channels, side = functions.shape[1], math.isqrt(len(functions) // 3)
    _copy_rows(encoder.conv_in, [(colour, 1, 1) for colour in range(3)])
    pixels, step = [(colour, 0, 0) for colour in range(3)], 1
    for block in encoder.down_blocks[:-1]:
        if (shortcut := block.resnets[0].conv_shortcut) is not None:
            _copy_rows(shortcut, [(row, 0, 0) for row in range(len(pixels))])
        taps = [(row, dy, dx) for row in range(len(pixels)) for dy in range(2) for dx in range(2)]
        pixels = [(pixels[row][0], pixels[row][1] + dy * step, pixels[row][2] + dx * step) for row, dy, dx in taps]
        last, step = block.downsamplers[0].conv, 2 * step
        if step < side:
            _copy_rows(last, taps)
    kernel = torch.zeros(channels, *last.weight.shape[1:])
    for (colour, y, x), (row, dy, dx) in zip(pixels, taps, strict=True):
        kernel[:, row, dy, dx] = functions[colour * side**2 + y * side + x] / std
    shift = -(mean @ functions) / std
    norm, out = encoder.conv_norm_out, encoder.conv_out
    if (shortcut := encoder.down_blocks[-1].resnets[0].conv_shortcut) is not None:
        last.weight[:channels], last.bias[:channels] = kernel, shift
        kernel, shift = torch.eye(channels, shortcut.in_channels)[..., None, None], torch.zeros(channels)
        last = shortcut
    for layer in (last, out):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    pairs = -(-channels // norm.num_groups)
    for row, channel, sign in pass_normalization(last, norm, out, channels, pairs=pairs, constant=CONSTANT, power=1.0):
        last.weight[row], last.bias[row] = sign * kernel[channel], sign * shift[channel]
    out.bias[channels:] = LOG_VARIANCE
    for projection in (net.quant_conv, net.post_quant_conv):
        nn.init.dirac_(projection.weight)
        nn.init.zeros_(projection.bias)


@torch.no_grad()
def with_latent_channels(original: Any, channels: int, images: Iterable[Tensor]) -> Any:
    """Return a copy with other latents, those of a cosine transform, and a decoder that reads the old ones from them.

    Args:
        original: An AutoencoderKL.
        channels: Latent channels.
        images: Batches (B, 3, H, W) for the means and deviations, and for the regression.
    """
    copy: Any = AutoencoderKL.from_config(dict(original.config) | {"latent_channels": channels})
    conv_in = {name: value for name, value in copy.decoder.state_dict().items() if name.startswith("conv_in.")}
    copy.decoder.load_state_dict(original.decoder.state_dict() | conv_in)
    batches, factor = list(images), 2 ** (len(original.config["block_out_channels"]) - 1)
    pixels = torch.cat([blocks(batch, factor) for batch in batches])
    functions = cosine_functions(channels, factor)
    start_as_transform(copy, functions, pixels.mean(dim=0), (pixels @ functions).std(dim=0))
    old = torch.cat([_rows(original.post_quant_conv(original.encode(batch).latent_dist.mean)) for batch in batches])
    new = torch.cat([_rows(copy.encode(batch).latent_dist.mean) for batch in batches])
    solution = torch.linalg.lstsq(torch.cat([new, torch.ones(len(new), 1)], dim=1), old).solution
    read, written = original.decoder.conv_in, copy.decoder.conv_in
    written.weight.mul_(NEW_LATENTS).add_(torch.einsum("oiyx,ni->onyx", read.weight, solution[:-1]))
    written.bias.copy_(read.bias + torch.einsum("oiyx,i->o", read.weight, solution[-1]))
    return copy


def _rows(latents: Tensor) -> Tensor:
    """Return (B, C, H, W) as (BHW, C)."""
    return latents.permute(0, 2, 3, 1).flatten(0, 2)


def _copy_rows(convolution: nn.Conv2d, sources: list[tuple[int, int, int]]) -> None:
    """Let the first outputs be single values: of an input channel, at a row and a column of the kernel."""
    assert convolution.bias is not None
    convolution.weight[: len(sources)] = 0.0
    convolution.bias[: len(sources)] = 0.0
    for row, (channel, y, x) in enumerate(sources):
        convolution.weight[row, channel, y, x] = 1.0


def main() -> None:
    """Write the copy that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="a model folder, a run, or the name of a shipped model")
    parser.add_argument("out", type=Path, help="folder for the copy")
    parser.add_argument("--widths", type=int, nargs="+", help="block_out_channels, at most the model's")
    parser.add_argument("--latent-channels", type=int, help="of an AutoencoderKL; default: the model's and its encoder")
    parser.add_argument("--images", default="photos:train", help="for the regression of --latent-channels; default: "
                        "%(default)s")  # fmt: skip
    args = parser.parse_args()
    torch.manual_seed(0)
    folder = model_place(args.model)
    kind = json.loads((folder / "config.json").read_text())["_class_name"]
    classes: dict[str, Any] = {"AutoencoderKL": AutoencoderKL, "VQModel": VQModel}
    copy = classes[kind].from_pretrained(folder).float()
    if args.widths is not None:
        copy = narrowed(copy, args.widths)
    if args.latent_channels is not None:
        loader = EvaluationLoader(open_source(args.images), ImageTransform(size=SIZE), batch_size=1)
        copy = with_latent_channels(copy, args.latent_channels, [batch.pixel_values for batch in loader])
    copy.save_pretrained(args.out)
    print(f"{args.out}: {sum(parameter.numel() for parameter in copy.parameters()):,} parameters")


if __name__ == "__main__":
    main()
