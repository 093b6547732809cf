"""Posterior uncertainty: where the encoder is unsure of the latents, and what this does to the pixels."""

from __future__ import annotations

from html import escape
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_ae.evaluation.report.pictures import heat_picture
from ldm_ae.evaluation.report.viewer import view, views
from ldm_ae.exploration.decoding import decode_levels
from ldm_ae.exploration.encoded import Encoded
from ldm_ae.exploration.frames import SMALL
from ldm_ae.exploration.settings import Fact, Section, Settings, absent
from ldm_ae.images.in_memory import levels_image
from ldm_ae.models import Autoencoder

SAMPLES = 8
"""Posterior samples of an image that are decoded."""
PICTURES = 3
"""Images at most."""
_PLACE, _TITLE = "uncertainty", "Posterior uncertainty"


def uncertainty(model: Autoencoder, images: Encoded, settings: Settings) -> Section:
    """Return maps of the posterior's standard deviation, and of that of decoded samples."""
    if images.log_variances is None:
        kind = "each code is chosen" if images.indices is not None else "the latents are computed"
        return absent(_PLACE, _TITLE, f"This model has no posterior uncertainty: {kind} without a distribution.")
    generator = settings.generator("posterior")
    found: list[tuple[str, Tensor, Tensor, Tensor, Tensor]] = []
    for place in images.shown(settings.pictures)[:PICTURES]:
        row = images.rows[place]
        mean, std = images.latents[row], (0.5 * images.log_variances[row]).exp()
        samples = mean + std * torch.randn((SAMPLES, *mean.shape), generator=generator)
        key = images.keys[row]
        decoded = decode_levels(model, torch.cat([mean[None], samples]), settings, what=f"a posterior sample of {key}")
        pixels = decoded[1:].float().std(dim=0).mean(dim=0)
        found.append((key, images.levels[place], decoded[0], std.mean(dim=0), pixels))
    widest = max(float(std.max()) for _, _, _, std, _ in found)
    strongest = max(float(pixels.max()) for *_, pixels in found)
    parts = []
    for key, levels, reconstruction, std, pixels in found:
        cells = [
            view("image", levels_image(levels), largest_png=SMALL),
            view("reconstruction", levels_image(reconstruction), largest_png=SMALL),
        ]
        if not images.is_vector:
            large = F.interpolate(std[None, None], size=levels.shape[-2:], mode="nearest")[0, 0]
            words = f"latents, up to {float(std.max()):.3g}"
            cells.append(view("std of the latents", heat_picture(large / widest), caption=words, pixels=True))
        words = f"pixels, up to {float(pixels.max()):.1f} levels"
        cells.append(view("std of the pixels", heat_picture(pixels / max(strongest, 1e-6)), caption=words))
        group = views(key, cells, css="three" if images.is_vector else "four")
        parts.append(f"<figure>{group}<figcaption><b>{escape(key)}</b></figcaption></figure>")
    values: dict[str, Any] = {
        "samples": SAMPLES,
        "images": [
            {"key": key, "latent_std": float(std.mean()), "pixel_std_levels": float(pixels.mean()),
             "pixel_std_levels_max": float(pixels.max())}
            for key, _, _, std, pixels in found
        ],
    }  # fmt: skip
    mean_std = sum(row["pixel_std_levels"] for row in values["images"]) / len(found)
    text = (
        "<p>The encoder gives a Gaussian for each latent, not a number. The latents' map shows its standard deviation "
        f"at each place, the mean over the channels; the pixels' map the standard deviation over {SAMPLES} decoded "
        "samples, the mean over the colours. Light places are where a diffusion model's targets are blurred; a map "
        f"without light means that the posterior is almost a point. White is {widest:.3g} for latents and "
        f"{strongest:.1f} of 255 levels for pixels.</p>"
    )
    if images.is_vector:
        text = (
            f"<p>The map is the standard deviation over {SAMPLES} decoded samples of the posterior, the mean over the "
            "colours: light pixels are those that the vector leaves open. The bars of the section above have the "
            f"standard deviation of each dimension. White is {strongest:.1f} of 255 levels.</p>"
        )
    fact = Fact("Posterior noise", f"{mean_std:.1f} levels", "std of decoded samples, of 255")
    return Section(
        place=_PLACE, title=_TITLE, content=f'{text}<div class="gallery">{"".join(parts)}</div>', values=values,
        facts=[fact],
    )  # fmt: skip
