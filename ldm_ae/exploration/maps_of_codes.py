"""Maps of codes: what the coarser maps of a hierarchical model hold, and what each finer one adds.

Source: Razavi et al., VQ-VAE-2, arXiv 1906.00446, figure 3.
"""

from __future__ import annotations

import math
from html import escape
from typing import Any

from torch import Tensor

from ldm_ae.core.code_maps import pack_maps, places_of_maps, split_maps
from ldm_ae.evaluation.metrics.psnr import psnr
from ldm_ae.evaluation.report.viewer import view, views
from ldm_ae.exploration.decoding import decode_levels
from ldm_ae.exploration.encoded import Encoded
from ldm_ae.exploration.frames import SMALL
from ldm_ae.exploration.settings import Section, Settings, absent
from ldm_ae.images.in_memory import levels_image
from ldm_ae.images.uint8 import from_levels
from ldm_ae.models import Autoencoder

_PLACE, _TITLE = "maps", "Maps of codes"


def maps_of_codes(model: Autoencoder, images: Encoded, settings: Settings) -> Section:
    """Return reconstructions from the coarsest map alone, from it and the next one, and so on to all maps."""
    maps, size = model.latent_spec.codebook_maps, model.latent_spec.codebook_size
    if maps is None or size is None:
        return absent(_PLACE, _TITLE, "This model does not have several maps of codes.")
    shown = images.shown(settings.pictures)
    rows = [images.rows[place] for place in shown]
    height, width = images.latents.shape[-2:]
    pixels = images.levels.shape[-2] * images.levels.shape[-1]
    columns, values = [], []
    decibels: list[list[float]] = []
    for count in range(1, maps + 1):
        latents = without_finer_maps(images.latents, maps, count)[rows]
        columns.append(decode_levels(model, latents, settings, what=f"a reconstruction from {count} maps"))
        rate = places_of_maps(count) * height * width * math.log2(size) / pixels
        decibels.append(psnr(from_levels(columns[-1]), from_levels(images.levels[shown])).tolist())
        values.append({"maps": count, "bits_per_pixel": rate, "psnr": decibels[-1]})
    titles = ["coarsest map alone", *(f"{count} maps" for count in range(2, maps)), "all maps"]
    parts = []
    for number, (place, row) in enumerate(zip(shown, rows, strict=True)):
        cells = [view("image", levels_image(images.levels[place]), largest_png=SMALL)]
        for title, column, scores in zip(titles, columns, decibels, strict=True):
            words = f"{title}: {scores[number]:.1f} dB"
            cells.append(view(title, levels_image(column[number]), largest_png=SMALL, caption=words))
        key = images.keys[row]
        parts.append(
            f"<figure>{views(key, cells, css='four')}<figcaption><b>{escape(key)}</b></figcaption></figure>"
        )  # fmt: skip
    rates = ", ".join(f"{title} {value['bits_per_pixel']:.3f}" for title, value in zip(titles, values, strict=True))
    words = (
        "Images decoded from the coarser maps of their codes, with the mean of all latents in place of the finer "
        f"ones. Bits per pixel at a fixed length: {rates}."
    )
    found: dict[str, Any] = {"reconstructions": values, "images": [images.keys[row] for row in rows]}
    return Section(place=_PLACE, title=_TITLE, content=f"<p>{words}</p>" + "".join(parts), values=found)


def without_finer_maps(latents: Tensor, maps: int, count: int) -> Tensor:
    """Return packed latents (N, C, h, w) whose first `count` maps are kept; each other map is everywhere the mean of
    its latents over all images and places."""
    kept = split_maps(latents, maps)
    means = [own.mean(dim=(0, 2, 3), keepdim=True).expand_as(own) for own in kept[count:]]
    return pack_maps([*kept[:count], *means])
