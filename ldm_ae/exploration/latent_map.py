"""The map: every image as a point of a plane, near those with similar latents."""

from __future__ import annotations

import base64
import io
import json
from html import escape
from typing import Any

import torch
from torch import Tensor

from ldm_ae.evaluation.metrics._labelled_latents import pooled
from ldm_ae.evaluation.report.pictures import image_grid
from ldm_ae.exploration.encoded import Encoded
from ldm_ae.exploration.projections import missing, neighbour_agreement, projections
from ldm_ae.exploration.settings import Fact, Section, Settings, absent
from ldm_ae.images.in_memory import levels_image
from ldm_ae.models import Autoencoder

CLASSES = 20
"""Classes with a colour and a mark of their own: the most frequent ones."""
_JPEG_QUALITY = 82
_PLACE, _TITLE = "map", "Map of the images"
_TOOLS = """<div class="tools"><div role="group" aria-label="Projection" data-part="projections"></div>
<div role="group" aria-label="Marks">
<button type="button" data-part="thumbnails" aria-pressed="false">Thumbnails</button>
<button type="button" data-part="smaller" aria-label="Zoom out">−</button>
<button type="button" data-part="larger" aria-label="Zoom in">+</button>
<button type="button" data-part="reset">Reset</button></div></div>"""
_CANVAS = """<div class="plane"><canvas tabindex="0" role="img" aria-label="Images as points"></canvas>
<div class="tip" data-part="tip" hidden><i></i><b></b><span></span></div></div>
<div class="classes" role="group" aria-label="Classes" data-part="classes"></div><p data-part="note"></p>"""


def latent_map(model: Autoencoder, images: Encoded, settings: Settings) -> Section:
    """Return an interactive scatter plot of pooled, scaled latents."""
    if len(images.keys) < 3:
        return absent(_PLACE, _TITLE, "A map needs three images or more.")
    features = torch.cat([pooled(model.scale(part).float()) for part in images.latents.split(256)])
    found = projections(features, settings.seed)
    classes = _shown_classes(images)
    sprite = image_grid(images.thumbnails, gap=0)
    data = {
        "side": images.thumbnails.shape[-1],
        "columns": sprite.shape[-1] // images.thumbnails.shape[-1],
        "names": images.keys,
        "colours": _colours(images.thumbnails),
        "labels": [classes.get(label, -1) for label in images.labels.tolist()],
        "classes": [images.class_name(label) for label in classes],
        "others": bool(classes) and len(images.labels.unique()) > len(classes),
        "projections": [
            {"name": each.name, "note": each.note, "points": _unit(each.coordinates)} for each in found
        ],
    }  # fmt: skip
    values: dict[str, Any] = {
        "features": features.shape[1], "images": images.keys, "labels": images.labels.tolist(),
        "projections": {each.name: each.coordinates.tolist() for each in found},
    }  # fmt: skip
    facts = [Fact("Images", f"{len(images.keys):,}", "on the map")]
    agreement = ""
    if images.is_labelled:
        known = images.labels[images.labels >= 0]
        same, chance = neighbour_agreement(features, images.labels), _chance(known)
        values["neighbour_agreement"], values["neighbour_agreement_chance"] = same, chance
        agreement = (
            f" The nearest neighbour of {same:.0%} of the images has the same class; a random image would for "
            f"{chance:.0%}."
        )
        facts = [Fact("Same-class neighbours", f"{same:.0%}", f"by chance {chance:.0%}")]
    colour = "class" if classes else "mean colour, as the images have no labels"
    lost = "".join(f" {escape(words)}" for words in missing())
    words = (
        f"<p>Each point is an image, coloured by its {colour}; near points have similar latents, averaged to "
        f"{features.shape[1]} numbers.{agreement} Point at one to see it; drag to move, scroll or pinch to zoom"
        f"{', and switch classes on and off below' if classes else ''}.{lost}</p>"
    )
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    content = (
        f'{words}<figure class="map">{_TOOLS}{_CANVAS}<img class="sprite" src="{_jpeg(sprite)}" '
        f'alt="thumbnails of all images" hidden><script type="application/json">{text}</script></figure>'
    )
    return Section(place=_PLACE, title=_TITLE, content=content, values=values, facts=facts)


def _shown_classes(images: Encoded) -> dict[int, int]:
    """Return the places in the legend of the most frequent classes, by the class."""
    found, counts = images.labels[images.labels >= 0].unique(return_counts=True)
    chosen = found[counts.argsort(descending=True, stable=True)[:CLASSES]].sort().values.tolist()
    return {label: place for place, label in enumerate(chosen)}


def _chance(labels: Tensor) -> float:
    """Return the probability that another image, drawn at random, has the same label."""
    counts = labels.unique(return_counts=True)[1].double()
    return float((counts * (counts - 1)).sum() / (len(labels) * (len(labels) - 1)))


def _colours(thumbnails: Tensor) -> list[str]:
    means = thumbnails.float().mean(dim=(2, 3)).round().to(torch.uint8).tolist()
    return [f"{red:02x}{green:02x}{blue:02x}" for red, green, blue in means]


def _unit(coordinates: Tensor) -> list[list[float]]:
    """Return coordinates (N, 2) in [-1, 1], both axes scaled alike, to four digits."""
    middle = (coordinates.amin(dim=0) + coordinates.amax(dim=0)) / 2
    reach = float((coordinates - middle).abs().max())
    return [[round(x, 4), round(y, 4)] for x, y in ((coordinates - middle) / max(reach, 1e-12)).tolist()]


def _jpeg(levels: Tensor) -> str:
    buffer = io.BytesIO()
    levels_image(levels).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
