"""Traversals: one channel changes, everything else stays, and the images show what the channel does.

Source: Higgins et al., beta-VAE, ICLR 2017, figure 1. A spatial channel changes at all places at once, or at the
central place alone.
"""

from __future__ import annotations

from html import escape
from typing import Any

import torch
from torch import Tensor

from ldm_ae.exploration.channels import channel_order
from ldm_ae.exploration.decoding import decode_levels
from ldm_ae.exploration.encoded import Encoded
from ldm_ae.exploration.frames import Row, frames, pad
from ldm_ae.exploration.settings import Section, Settings
from ldm_ae.models import Autoencoder

REACH = 3.0
"""Standard deviations from the middle to either end."""
_SPATIAL, _VECTOR = (4, 7, 5), (10, 11, 15)
"""Channels, steps of a row, and steps of a side of the pad: few for large images, which take a second each."""
_CENTRAL = 2
"""Channels that change at the central place."""


def traversals(model: Autoencoder, images: Encoded, settings: Settings) -> Section:
    """Return rows of images for the most active channels, and a pad over the first two."""
    count, steps, side = _VECTOR if images.is_vector else _SPATIAL
    order = channel_order(images)[:count]
    positions = torch.linspace(-REACH, REACH, steps)
    names = [f"{round(position, 1) + 0.0:+.1f} σ".replace("-", "−") for position in positions.tolist()]
    place = images.shown(settings.pictures)[0]
    row = images.rows[place]
    key = images.keys[row]
    base = images.latents[row]
    noun = "dimension" if images.is_vector else "channel"

    def rows(chosen: list[int], *, central: bool) -> tuple[list[Row], list[dict[str, Any]]]:
        drawn, values = [], []
        for channel in chosen:
            latents = traverse(base, images.latents, channel, positions, central=central)
            decoded = decode_levels(model, latents, settings, what=f"a traversal of {noun} {channel}")
            middle = decoded[steps // 2].float()
            change = max(float((decoded[end].float() - middle).abs().mean()) for end in (0, -1))
            drawn.append(Row(f"{noun} {channel}", decoded, f"{change:.1f} levels"))
            values.append({"channel": channel, "change_levels": change})
        return drawn, values

    everywhere, values = rows(order, central=False)
    found: dict[str, Any] = {
        "image": key, "reach_std": REACH, "steps": steps, "places": "vector" if images.is_vector else "all",
        "channels": values,
    }  # fmt: skip
    content = _words(images, key) + frames(everywhere, names, start=steps // 2, label=noun)
    if not images.is_vector:
        central, found["central_channels"] = rows(order[:_CENTRAL], central=True)
        content += (
            "<h3>At the central place only</h3><p>The same change of one latent place: the part of the image that "
            "changes is the reach of one latent.</p>" + frames(central, names, start=steps // 2, label="channel")
        )
    if len(order) > 1:
        content += _pad(model, images, settings, base, (order[0], order[1]), side)
    return Section(place="traversals", title="Traversals", content=content, values=found)


def traverse(base: Tensor, latents: Tensor, channel: int, positions: Tensor, *, central: bool = False) -> Tensor:
    """Return latents in which one channel differs.

    A vector's number is set to its mean over the images plus each position times its standard deviation. A spatial
    channel keeps the image's own map, to which as many standard deviations are added.

    Args:
        base: Latents of the image, (C, h, w).
        latents: Latents of all images, (N, C, h, w).
        channel: The channel.
        positions: Standard deviations of the channel's values over the images, (T,).
        central: Change a spatial channel at the central place alone.

    Returns:
        (T, C, h, w).
    """
    values = latents[:, channel]
    steps = positions.to(base) * values.std(correction=0)
    found = base[None].repeat(len(positions), 1, 1, 1)
    if base.shape[-2:] == (1, 1):
        found[:, channel] = values.mean() + steps[:, None, None]
    elif central:
        found[:, channel, base.shape[-2] // 2, base.shape[-1] // 2] += steps
    else:
        found[:, channel] += steps[:, None, None]
    return found


def _pad(
    model: Autoencoder, images: Encoded, settings: Settings, base: Tensor, chosen: tuple[int, int], side: int
) -> str:
    """Return the images over two channels; the first goes from left to right, the second from bottom to top."""
    across, up = chosen
    positions = torch.linspace(-REACH, REACH, side)
    columns = traverse(base, images.latents, across, positions)
    heights = traverse(base, images.latents, up, positions.flip(0))[:, up]
    square = columns[None].repeat(side, 1, 1, 1, 1)
    square[:, :, up] = heights[:, None]
    decoded = decode_levels(model, square.flatten(0, 1), settings, what="a traversal of two channels")
    noun = "dimension" if images.is_vector else "channel"
    return (
        f"<h3>Two at once</h3><p>The two most active {noun}s together. Move a pointer or finger over the square.</p>"
        + pad(decoded, side, across=f"{noun} {across}", up=f"{noun} {up}", reach=REACH)
    )  # fmt: skip


def _words(images: Encoded, key: str) -> str:
    if images.is_vector:
        return (
            f"<p>One dimension of the vector of {escape(key)} takes the values from {REACH:g} standard deviations "
            "below its mean over the images to as many above; the others stay. A row in which one property of the "
            "image changes and nothing else is a disentangled dimension; a row of equal images is one that the decoder "
            "ignores. Levels are the mean change of a pixel, of 255, at the end of the row.</p>"
        )
    codes = " Latents between codes are decoded as they are, without rounding to a code." * (images.indices is not None)
    return (
        f"<p>One channel of {escape(key)} is shifted at all places by up to {REACH:g} of its standard deviations over "
        "the images. Where the whole image turns brighter or changes its colour, the channel holds just that; where "
        "textures appear, it holds detail. Levels are the mean change of a pixel, of 255, at the end of the "
        f"row.{codes}</p>"
    )
