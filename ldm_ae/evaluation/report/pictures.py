"""Conversion of tensors to PIL images: images, comparisons, errors, latent channels."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ldm_ae.images.in_memory import to_uint8_image
from ldm_ae.images.uint8 import to_levels

ERROR_GAIN = 4.0
"""Factor by which shown errors are multiplied."""

LATENT_REACH = 2.5
"""Standard deviations from a channel's mean to the darkest and to the lightest colour."""

LEGIBLE = 64
"""Number of pixels of the shorter side to which `legible` enlarges."""

# From dark to light with evenly rising lightness, so that the images can also be read in greyscale.
_HEAT = ((0, 0, 4), (40, 17, 89), (114, 31, 129), (182, 54, 121), (241, 96, 93), (254, 175, 119), (252, 253, 191))
_BALANCE = ((33, 76, 143), (128, 166, 211), (247, 247, 247), (222, 143, 120), (160, 36, 36))
_SEA = ((68, 1, 84), (70, 50, 127), (54, 92, 141), (39, 127, 142), (31, 161, 135), (74, 193, 109), (253, 231, 37))


def comparison_grid(
    originals: Tensor,
    reconstructions: Tensor,
    *,
    columns: int = 8,
    background: tuple[int, int, int] = (255, 255, 255),
    errors: bool = False,
) -> Image.Image:
    """Draw pairs side by side, each original above its reconstruction, with thin lines between.

    Args:
        originals: (B, 3, H, W) in [-1, 1].
        reconstructions: (B, 3, H, W), clamped here.
        columns: Pairs in a row.
        background: Colour of the lines and of empty places: 2 pixels inside a pair, 4 between columns, 8 between rows.
        errors: Draw the error map of each pair below its reconstruction.
    """
    assert originals.shape == reconstructions.shape
    count, _, height, width = originals.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    inside, between, below = 2, 4, 8
    stacked = 3 if errors else 2
    stride = stacked * (height + inside) - inside + below
    grid = Image.new("RGB", (columns * (width + between) - between, rows * stride - below), background)
    for i in range(count):
        left, top = i % columns * (width + between), i // columns * stride
        drawn = [to_uint8_image(originals[i]), to_uint8_image(reconstructions[i])]
        if errors:
            drawn.append(error_map(originals[i], reconstructions[i]).convert("RGB"))
        for place, image in enumerate(drawn):
            grid.paste(image, (left, top + place * (height + inside)))
    return grid


def legible(images: Tensor) -> Tensor:
    """Return images (..., H, W) with each pixel repeated, so that the shorter side has at least `LEGIBLE` pixels.

    Digits of 16 pixels are too small to see in a file that an image viewer shows at its own size.
    """
    factor = -(-LEGIBLE // min(images.shape[-2:]))
    return images.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)


def image_grid(images: Tensor, gap: int = 2) -> Tensor:
    """Return images (N, 3, H, W) uint8 as one image, as nearly square as possible, with white lines between."""
    count, channels, height, width = images.shape
    columns = max(round(count**0.5), 1)
    rows = -(-count // columns)
    canvas = torch.full((channels, rows * (height + gap) - gap, columns * (width + gap) - gap), 255, dtype=torch.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        canvas[:, top : top + height, left : left + width] = image
    return canvas


def error_map(original: Tensor, reconstruction: Tensor, *, gain: float = ERROR_GAIN) -> Image.Image:
    """Draw the mean absolute difference over the colours at each pixel; black means no difference.

    Args:
        original: (3, H, W) in [-1, 1].
        reconstruction: (3, H, W), clamped here.
        gain: The lightest colour stands for a difference of 1 / gain of the whole range, or more.
    """
    difference = (to_levels(original) - to_levels(reconstruction)).abs().mean(dim=0) / 255.0
    return _coloured(difference * gain, _HEAT)


def latent_channel_pictures(
    latents: Tensor, *, mean: Tensor | None = None, std: Tensor | None = None
) -> list[Image.Image]:
    """Draw each channel, normalized from `LATENT_REACH` standard deviations below its mean to as many above.

    Args:
        latents: (C, h, w).
        mean: (C,) over a set of images; None uses this image's own.
        std: (C,) over a set of images; None uses this image's own.
    """
    latents = latents.detach().float().cpu()
    mean = latents.mean(dim=(1, 2)) if mean is None else mean.to(latents)
    std = latents.std(dim=(1, 2), correction=0) if std is None else std.to(latents)
    scaled = (latents - mean[:, None, None]) / (LATENT_REACH * std.clamp(min=1e-12))[:, None, None]
    return [_coloured((channel + 1.0) / 2.0, _SEA) for channel in scaled]


def code_picture(counts: Tensor) -> Image.Image:
    """Draw a pixel for each code, row by row, as nearly square as possible: black for a code that never occurs, the
    lightest colour from 16 times the uniform frequency. Places after the last code are grey.

    Args:
        counts: (K,) int64, not all 0.
    """
    size = len(counts)
    width = math.isqrt(size - 1) + 1
    height = -(-size // width)
    # Four octaves on either side of the uniform frequency, above the darkest fifth of the colours.
    octaves = torch.log2(counts.double() * size / counts.sum()).clamp(-4.0, 4.0)
    values = torch.where(counts > 0, 0.2 + 0.1 * (octaves + 4.0), 0.0)
    padded = torch.cat([values, values.new_zeros(width * height - size)]).view(height, width)
    picture = _coloured(padded, _HEAT)
    if width * height > size:
        picture = picture.convert("RGB")
        picture.paste((128, 128, 128), (size - width * (height - 1), height - 1, width, height))
    return picture


def heat_picture(values: Tensor) -> Image.Image:
    """Draw a pixel for each number of (H, W) in [0, 1], clamped, from black over purple to light yellow."""
    return _coloured(values.detach().float().cpu(), _HEAT)


def grey_picture(values: Tensor) -> Image.Image:
    """Draw a pixel for each number of (H, W) in [0, 1], clamped, from black to white."""
    return _coloured(values.detach().float().cpu(), ((0, 0, 0), (255, 255, 255)))


def matrix_picture(values: Tensor) -> Image.Image:
    """Draw a pixel for each number of a matrix (rows, columns) in [-1, 1]: blue is -1, white 0 and red 1."""
    return _coloured((values.detach().float().cpu() + 1.0) / 2.0, _BALANCE)


def _coloured(values: Tensor, colours: tuple[tuple[int, int, int], ...]) -> Image.Image:
    """Convert (H, W) in [0, 1], clamped, through evenly spaced colours to an image with a palette of 256."""
    stops = np.linspace(0, 255, len(colours))
    palette = np.stack([np.interp(np.arange(256), stops, channel) for channel in zip(*colours, strict=True)], axis=1)
    indices: npt.NDArray[np.uint8] = (values.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).cpu().numpy()
    picture = Image.fromarray(indices).convert("P")
    picture.putpalette(palette.round().astype(np.uint8).tobytes())
    return picture
