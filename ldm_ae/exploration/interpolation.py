"""Interpolation between two images, linear and spherical, in scaled latents.

Source of the spherical one: White, Sampling Generative Networks, arXiv 1609.04468, section 2.1. Here the direction is
interpolated on the sphere and the norm linearly, which equals it where both ends have one norm.
"""

from __future__ import annotations

from html import escape
from typing import Any

import torch
from torch import Tensor

from ldm_ae.exploration.decoding import decode_levels
from ldm_ae.exploration.encoded import Encoded
from ldm_ae.exploration.frames import Row, frames
from ldm_ae.exploration.settings import Section, Settings, absent
from ldm_ae.models import Autoencoder

_SPATIAL, _VECTOR = 7, 11
"""Images of a row, both ends included."""
_PAIRS = 2
_NEARLY_PARALLEL = 1e-4
"""Angle in radians below which, or as near to a half turn, the sphere has no path of its own."""
_PLACE, _TITLE = "interpolation", "Interpolation"


def interpolation(model: Autoencoder, images: Encoded, settings: Settings) -> Section:
    """Return rows of images between two images."""
    shown = images.shown(max(settings.pictures, 2))
    if len(shown) < 2:
        return absent(_PLACE, _TITLE, "Interpolation needs two images or more.")
    steps = _VECTOR if images.is_vector else _SPATIAL
    fractions = torch.linspace(0.0, 1.0, steps)
    parts, values = [], []
    for first, second in [(shown[i], shown[i + 1]) for i in range(0, len(shown) - 1, 2)][:_PAIRS]:
        keys = [images.keys[images.rows[place]] for place in (first, second)]
        start, end = (model.scale(images.latents[images.rows[place]][None])[0] for place in (first, second))
        paths = {"linear": linear(start, end, fractions), "spherical": spherical(start, end, fractions)}
        what = f"an interpolation between {keys[0]} and {keys[1]}"
        drawn = []
        found: dict[str, Any] = {"images": keys, "angle_degrees": float(torch.rad2deg(angle(start, end)))}
        found["norms_of_ends"] = [float(start.norm()), float(end.norm())]
        for name, path in paths.items():
            norm = float(path[steps // 2].norm())
            found[f"norm_{name}"] = norm
            drawn.append(Row(name, decode_levels(model, model.unscale(path), settings, what=what), f"norm {norm:.3g}"))
        levels = linear(images.levels[first].float(), images.levels[second].float(), fractions)
        drawn.append(Row("pixels", levels.round().to(torch.uint8), "for reference"))
        values.append(found)
        norms = " and ".join(f"{norm:.3g}" for norm in found["norms_of_ends"])
        caption = (
            f"<h3>{escape(keys[0])} → {escape(keys[1])}</h3><p>The latents' angle is {found['angle_degrees']:.0f}°, "
            f"their norms are {norms}; the rows name the norm in the middle.</p>"
        )
        names = [f"{fraction:.0%}" for fraction in fractions.tolist()]
        parts.append(caption + frames(drawn, names, start=steps // 2, label="way"))
    text = (
        "<p>From one image to another, through the latents that a diffusion model sees. Where the middle is a sharp, "
        "possible image, the latents between two images are images too. Where it is a double exposure, as in the row "
        "of pixels, the latents are laid out like pixels, which is usual for models with many places. A straight line "
        "passes closer to the origin than both ends; the spherical path keeps the norm.</p>"
    )
    return Section(place=_PLACE, title=_TITLE, content=text + "".join(parts), values={"pairs": values})


def linear(start: Tensor, end: Tensor, fractions: Tensor) -> Tensor:
    """Return (T, *shape) tensors on the straight line between two tensors, at fractions (T,) of the way."""
    weights = fractions.to(start).view(-1, *[1] * start.ndim)
    return start + weights * (end - start)


def spherical(start: Tensor, end: Tensor, fractions: Tensor) -> Tensor:
    """Return (T, *shape) tensors whose direction turns evenly from one tensor to another and whose norm changes evenly.

    The path is the straight line where an end is 0, both ends are parallel, or opposite.
    """
    turn = float(angle(start, end))
    lengths = start.norm(), end.norm()
    if not min(lengths) or not _NEARLY_PARALLEL < turn < torch.pi - _NEARLY_PARALLEL:
        return linear(start, end, fractions)
    weights = fractions.to(start).view(-1, *[1] * start.ndim)
    from_start, from_end = torch.sin((1 - weights) * turn), torch.sin(weights * turn)
    direction = (from_start * start / lengths[0] + from_end * end / lengths[1]) / torch.sin(torch.tensor(turn))
    return direction * linear(lengths[0], lengths[1], fractions).view_as(weights)


def angle(one: Tensor, other: Tensor) -> Tensor:
    """Return the angle between two tensors of one shape as vectors, in radians; a right angle where one is 0."""
    return torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0).clamp(-1.0, 1.0).acos()
