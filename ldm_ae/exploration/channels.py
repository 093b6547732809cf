"""Latent channels: each as a grey map, or the values of a vector as bars, sorted by what they carry.

The KL is that of each channel to N(0, 1), equation 10 of Kingma and Welling, arXiv 1312.6114, per element.
"""

from __future__ import annotations

from html import escape
from typing import Any

import torch
from torch import Tensor

from ldm_ae.evaluation.latent_summary import ACTIVE_NATS
from ldm_ae.evaluation.report.page import table
from ldm_ae.evaluation.report.pictures import LATENT_REACH, grey_picture
from ldm_ae.evaluation.report.viewer import view, views
from ldm_ae.exploration.encoded import Encoded
from ldm_ae.exploration.frames import SMALL
from ldm_ae.exploration.settings import Fact, Section, Settings
from ldm_ae.images.in_memory import levels_image
from ldm_ae.models import Autoencoder, GaussianPosterior

SHOWN = 16
"""Maps of an image."""
TABLE_ROWS = 64


def channels(model: Autoencoder, images: Encoded, settings: Settings) -> Section:
    """Return maps of the latents of some images, and statistics of each channel over all images."""
    del model
    kl = channel_kl(images)
    order = channel_order(images)
    mean, std = images.latents.mean(dim=(0, 2, 3)), images.latents.std(dim=(0, 2, 3), correction=0)
    low, high = images.latents.amin(dim=(0, 2, 3)), images.latents.amax(dim=(0, 2, 3))
    values: list[dict[str, Any]] = [
        {
            "channel": c, "mean": float(mean[c]), "std": float(std[c]), "min": float(low[c]), "max": float(high[c]),
            "kl_nats": None if kl is None else float(kl[c]),
            "active": None if kl is None else bool(kl[c] > ACTIVE_NATS),
        }
        for c in order
    ]  # fmt: skip
    shown = images.shown(settings.pictures)
    drawn = _bars(images, shown, order) if images.is_vector else _maps(images, shown, order, mean, std)
    facts = []
    if kl is not None:
        active = sum(value["active"] for value in values)
        facts = [
            Fact("Active channels", f"{active} of {len(values)}", f"KL above {ACTIVE_NATS:g} nats"),
            Fact("Information", f"{float(kl.sum()) * images.latents[0, 0].numel() / 0.6931:,.0f} bits",
                 "KL to N(0, 1), per image"),
        ]  # fmt: skip
    return Section(
        place="channels", title="Latent channels", content=_words(images, kl) + drawn + _table(values),
        values={"sorted_by": "std" if kl is None else "kl_nats", "channels": values}, facts=facts,
    )  # fmt: skip


def channel_kl(images: Encoded) -> Tensor | None:
    """Return the KL of each channel to N(0, 1) in nats per element, (C,); None unless posteriors are Gaussian."""
    if images.log_variances is None:
        return None
    parts = zip(images.latents.split(64), images.log_variances.split(64), strict=True)
    total = sum(
        GaussianPosterior(torch.cat([mean, log_variance], dim=1)).kl_map().double().sum(dim=(0, 2, 3))
        for mean, log_variance in parts
    )
    assert isinstance(total, Tensor)
    return total * images.latents.shape[1] / images.latents.numel()


def channel_order(images: Encoded) -> list[int]:
    """Return the numbers of the channels, the most active first: by their KL, or without one by their standard
    deviation over the images."""
    kl = channel_kl(images)
    by = images.latents.std(dim=(0, 2, 3), correction=0) if kl is None else kl
    return by.argsort(descending=True, stable=True).tolist()


def _words(images: Encoded, kl: Tensor | None) -> str:
    by = "their standard deviation over the images" if kl is None else "their KL to the prior N(0, 1)"
    if images.is_vector:
        return (
            "<p>Each bar is one number of the image's vector, and the dimensions stand in the order of "
            f"{by}. Dimensions that are 0 in every image carry nothing: the decoder ignores them. "
            + ("The line on a bar spans one posterior standard deviation on either side.</p>" if kl is not None
               else "</p>")
        )  # fmt: skip
    return (
        f"<p>Each map is one channel of an image's latents, in the order of {by}. Grey is the channel's mean over all "
        f"images, black {LATENT_REACH:g} standard deviations below it and white as many above. A channel that looks "
        "like the image holds brightness or colour at each place; one that looks like noise holds detail. Click a map "
        "to compare it with the image.</p>"
    )


def _maps(images: Encoded, shown: list[int], order: list[int], mean: Tensor, std: Tensor) -> str:
    parts = []
    for place in shown:
        row = images.rows[place]
        cells = [view("image", levels_image(images.levels[place]), largest_png=SMALL)]
        for c in order[:SHOWN]:
            own = images.latents[row, c]
            reach = LATENT_REACH * float(std[c].clamp(min=1e-12))
            picture = grey_picture(((own - mean[c]) / reach + 1.0) / 2.0)
            caption = (
                f"<b>{c}</b> {float(own.min()):.2f} to {float(own.max()):.2f}<br>{float(own.mean()):+.2f} ± "
                f"{float(own.std(correction=0)):.2f}"
            )
            cells.append(view(f"channel {c}", picture, caption=caption, pixels=True))
        key = images.keys[row]
        parts.append(f"<figure>{views(key, cells, css='strip')}<figcaption><b>{escape(key)}</b></figcaption></figure>")
    more = len(order) - SHOWN
    note = f"<p>The {SHOWN} most active channels; the table has the other {more}.</p>" if more > 0 else ""
    return f'{note}<div class="gallery">{"".join(parts)}</div>'


def _bars(images: Encoded, shown: list[int], order: list[int]) -> str:
    parts = []
    tallest = max(float(images.latents.abs().max()), 1e-6)
    for place in shown:
        row = images.rows[place]
        vector = images.latents[row, order, 0, 0]
        spread = None if images.log_variances is None else (0.5 * images.log_variances[row, order, 0, 0]).exp()
        cell = view("image", levels_image(images.levels[place]), largest_png=SMALL, caption="")
        key = images.keys[row]
        parts.append(
            f'<figure class="vector">{views(key, [cell])}<div>{value_bars(vector, spread, tallest, order)}'
            f"<small>{escape(key)}</small></div></figure>"
        )
    return f'<div class="vectors">{"".join(parts)}</div>'


def value_bars(vector: Tensor, spread: Tensor | None, tallest: float, order: list[int]) -> str:
    """Return the numbers of a vector as bars from a middle line, and their standard deviations as lines.

    Args:
        vector: (D,).
        spread: Standard deviations (D,), or None.
        tallest: Magnitude that fills the height.
        order: Names of the D numbers.
    """
    parts = []
    for i, value in enumerate(vector.tolist()):
        end = 50 - 48 * value / tallest
        top, height = min(50.0, end), abs(end - 50)
        parts.append(
            f'<rect x="{i + 0.1:g}" y="{top:.2f}" width=".8" height="{height:.2f}"><title>{order[i]}: {value:+.3f}'
            "</title></rect>"
        )
        if spread is not None:
            reach = 48 * float(spread[i]) / tallest
            low, high = min(end + reach, 100), max(end - reach, 0)
            parts.append(
                f'<rect class="spread" x="{i + 0.42:g}" y="{high:.2f}" width=".16" height="{low - high:.2f}"/>'
            )
    return (
        f'<svg class="values" viewBox="0 0 {len(vector)} 100" preserveAspectRatio="none" role="img" '
        f'aria-label="values of the vector">{"".join(parts)}'
        f'<rect class="zero" x="0" y="49.75" width="{len(vector)}" height=".5"/></svg>'
    )


def _table(values: list[dict[str, Any]]) -> str:
    rows = []
    for value in values[:TABLE_ROWS]:
        kl = value["kl_nats"]
        rows.append((
            str(value["channel"]), f"{value['mean']:+.3f}", f"{value['std']:.3f}",
            f"{value['min']:.2f} to {value['max']:.2f}", "" if kl is None else f"{kl:.3f}",
            {True: "yes", False: "no", None: ""}[value["active"]],
        ))  # fmt: skip
    header = ("Channel", "Mean", "Std", "Range", "KL, nats per element", "Active")
    columns = len(header) if values[0]["kl_nats"] is not None else 4
    more = len(values) - len(rows)
    note = f"<p>exploration.json has the other {more} channels.</p>" if more > 0 else ""
    drawn = table(header[:columns], [row[:columns] for row in rows], numbers=(0, 1, 2, 3, 4), css="narrow")
    return f"<details><summary>Statistics of each channel over all images</summary>{drawn}{note}</details>"
