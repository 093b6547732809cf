"""Arithmetic of latents: the mean of each class, class directions added to an image, and a - b + c.

Source: Radford et al., Unsupervised Representation Learning with DCGANs, arXiv 1511.06434, section 6.3.2.
"""

from __future__ import annotations

from html import escape
from typing import Any

import torch
from torch import Tensor

from ldm_ae.evaluation.report.viewer import view, views
from ldm_ae.exploration.decoding import decode_levels
from ldm_ae.exploration.encoded import Encoded
from ldm_ae.exploration.frames import SMALL
from ldm_ae.exploration.settings import Section, Settings, absent
from ldm_ae.images.in_memory import levels_image
from ldm_ae.models import Autoencoder

CLASSES = 10
"""Classes at most: the most frequent ones."""
_MOVED = {False: (2, 4), True: (3, CLASSES)}
"""Images that are moved, and classes that each is moved to; more for the cheap decoders of vectors."""
_PLACE, _TITLE = "arithmetic", "Arithmetic"


def arithmetic(model: Autoencoder, images: Encoded, settings: Settings) -> Section:
    """Return decoded sums of latents: of classes where images have labels, else of three images."""
    if images.is_labelled:
        return _of_classes(model, images, settings)
    shown = images.shown(max(settings.pictures, 3))
    if len(shown) < 3:
        return absent(_PLACE, _TITLE, "Arithmetic needs three images, or images of two classes.")
    return _of_images(model, images, settings, shown)


def class_means(latents: Tensor, labels: Tensor, *, most: int = CLASSES) -> dict[int, Tensor]:
    """Return the mean latents (C, h, w) of the most frequent classes, by the class in ascending order.

    Args:
        latents: (N, C, h, w).
        labels: (N,) int64; negative values are no class.
        most: Number of classes.
    """
    found, counts = labels[labels >= 0].unique(return_counts=True)
    chosen = found[counts.argsort(descending=True, stable=True)[:most]].sort().values.tolist()
    return {label: latents[labels == label].mean(dim=0) for label in chosen}


def _of_classes(model: Autoencoder, images: Encoded, settings: Settings) -> Section:
    means = class_means(images.latents, images.labels)
    names = {label: images.class_name(label) for label in means}
    decoded = decode_levels(model, torch.stack(list(means.values())), settings, what="the mean of a class")
    cells = [_cell(name, levels) for name, levels in zip(names.values(), decoded, strict=True)]
    content = (
        "<p>The mean latents of the images of each class, decoded. Where a mean looks like a member of "
        "its class, the class is one cloud; a grey blur means that places are not aligned between images.</p>"
        f"<figure>{views('Means of classes', cells, css='tiles')}</figure>"
    )
    moved, values = _moved(model, images, settings, means)
    content += moved
    if len(means) > 2:
        a, b, c = list(means)[:3]
        result = decode_levels(model, (means[a] - means[b] + means[c])[None], settings, what="a sum of classes")[0]
        places = [list(means).index(label) for label in (a, b, c)]
        content += (
            f"<h3>a − b + c of class means</h3>{_sum([names[label] for label in (a, b, c)], decoded[places], result)}"
        )
    return Section(
        place=_PLACE, title=_TITLE, content=content,
        values={"classes": [names[label] for label in means], "moved": values},
    )  # fmt: skip


def _moved(
    model: Autoencoder, images: Encoded, settings: Settings, means: dict[int, Tensor]
) -> tuple[str, list[dict[str, Any]]]:
    """Return images from which the mean of their class is subtracted and that of another is added."""
    pictures, targets = _MOVED[images.is_vector]
    places = [p for p in range(len(images.rows)) if int(images.labels[images.rows[p]]) in means]
    chosen = [places[(2 * i + 1) * len(places) // (2 * pictures)] for i in range(min(pictures, len(places)))]
    parts, values = [], []
    for place in chosen:
        row = images.rows[place]
        own = int(images.labels[row])
        others = [label for label in means if label != own][:targets]
        latents = images.latents[row]
        moved = torch.stack([latents, *(latents + means[label] - means[own] for label in others)])
        decoded = decode_levels(model, moved, settings, what="an image with the direction of a class")
        cells = [_cell("image", images.levels[place]), _cell("reconstruction", decoded[0])]
        cells += [
            _cell(f"→ {images.class_name(label)}", levels) for label, levels in zip(others, decoded[1:], strict=True)
        ]
        key = images.keys[row]
        caption = f"<figcaption><b>{escape(key)}</b>{escape(images.class_name(own))}</figcaption>"
        parts.append(f"<figure>{views(key, cells, css='tiles')}{caption}</figure>")
        values.append({"image": key, "from": images.class_name(own), "to": [images.class_name(o) for o in others]})
    words = (
        "<h3>An image in the direction of another class</h3><p>The latents of an image, less the mean of its class, "
        "plus the mean of another. Where the class changes and the style of the image stays, class and style are "
        "separate directions.</p>"
    )
    return words + "".join(parts), values


def _of_images(model: Autoencoder, images: Encoded, settings: Settings, shown: list[int]) -> Section:
    parts, values = [], []
    for a, b, c in [shown[:3], *([[shown[3], shown[0], shown[1]]] if len(shown) > 3 else [])]:
        rows = [images.rows[place] for place in (a, b, c)]
        keys = [images.keys[row] for row in rows]
        latents = images.latents[rows]
        result = decode_levels(model, (latents[0] - latents[1] + latents[2])[None], settings, what="a sum of images")[0]
        pixels = images.levels[[a, b, c]].float()
        reference = (pixels[0] - pixels[1] + pixels[2]).clamp(0, 255).to(torch.uint8)
        parts.append(_sum(keys, images.levels[[a, b, c]], result, reference))
        values.append(dict(zip("abc", keys, strict=True)))
    words = (
        "<p>Latents of image a, minus those of b, plus those of c, decoded. These images have no labels, for which "
        "directions of classes would be defined: put images into one folder for each class to see them. Where the sum "
        "looks like that of the pixels, the latents are laid out like pixels.</p>"
    )
    return Section(place=_PLACE, title=_TITLE, content=words + "".join(parts), values={"sums": values})


def _sum(names: list[str], levels: Tensor, result: Tensor, pixels: Tensor | None = None) -> str:
    signs = ("a", "− b", "+ c")
    cells = [_cell(f"{sign}: {name}", image) for sign, name, image in zip(signs, names, levels, strict=True)]
    cells += [_cell("= decoded", result)] + ([] if pixels is None else [_cell("pixels, for reference", pixels)])
    return f"<figure>{views('a − b + c', cells, css='tiles')}</figure>"


def _cell(label: str, levels: Tensor) -> str:
    return view(label, levels_image(levels), largest_png=SMALL)
