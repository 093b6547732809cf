"""Samples of a prior: of N(0, 1) for vectors, of a trained prior for codes, and of independent places for maps."""

from __future__ import annotations

from html import escape
from typing import Any

import torch
from torch import Tensor

from ldm_ae.evaluation.report.viewer import view, views
from ldm_ae.exploration.decoding import decode_levels
from ldm_ae.exploration.encoded import Encoded
from ldm_ae.exploration.frames import SMALL
from ldm_ae.exploration.settings import Section, Settings
from ldm_ae.images.in_memory import levels_image
from ldm_ae.models import Autoencoder

_SPATIAL, _VECTOR = 8, 24
"""Samples of each kind."""


def samples(model: Autoencoder, images: Encoded, settings: Settings) -> Section:
    """Return decoded samples: what the model makes where no image was encoded."""
    if images.indices is not None:
        drawn = _of_codes(model, images, settings)
    elif images.is_vector:
        drawn = _of_vectors(model, images, settings)
    else:
        drawn = _of_places(model, images, settings)
    parts, values = [], []
    for title, words, latents in drawn:
        decoded = decode_levels(model, latents, settings, what=f"a sample of {title}")
        cells = [
            view(f"sample {i + 1}", levels_image(levels), largest_png=SMALL, caption="")
            for i, levels in enumerate(decoded)
        ]
        parts.append(f"<h3>{escape(title)}</h3><p>{words}</p><figure>{views(title, cells, css='samples')}</figure>")
        values.append({"kind": title, "count": len(decoded)})
    found: dict[str, Any] = {"samples": values}
    return Section(place="samples", title="Samples of a prior", content="".join(parts), values=found)


def _of_vectors(model: Autoencoder, images: Encoded, settings: Settings) -> list[tuple[str, str, Tensor]]:
    """Return samples of N(0, 1) and of the Gaussian with the mean and the covariance of the images' vectors."""
    del model
    vectors = images.latents.flatten(1)
    mean, root = gaussian(vectors)
    noise = torch.randn(_VECTOR, vectors.shape[1], generator=settings.generator("prior"))
    shape = (_VECTOR, *images.latents.shape[1:])
    return [
        ("z ~ N(0, 1)", "Vectors of the prior that a variational autoencoder is trained with, decoded. If these are "
         "worse than reconstructions, the posteriors do not fill the prior, and the decoder never saw such vectors.",
         noise.view(shape)),
        ("z ~ the Gaussian of the images", "The same noise with the mean and the covariance of the images' vectors. If "
         "these are better than the samples above, a prior that is fitted after the training helps.",
         (mean + noise @ root).view(shape)),
    ]  # fmt: skip


def gaussian(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (D,) of vectors (N, D) and a matrix R (D, D) such that noise N(0, 1) times R has their
    covariance."""
    mean = vectors.mean(dim=0)
    centered = (vectors - mean).double()
    values, directions = torch.linalg.eigh(centered.T @ centered / len(vectors))
    root = directions * values.clamp(min=0.0).sqrt() @ directions.T
    return mean, root.to(vectors)


def _of_places(model: Autoencoder, images: Encoded, settings: Settings) -> list[tuple[str, str, Tensor]]:
    del model
    generator = settings.generator("prior")
    shape = (_SPATIAL, *images.latents.shape[1:])
    mean = images.latents.mean(dim=(0, 2, 3))[:, None, None]
    std = images.latents.std(dim=(0, 2, 3), correction=0)[:, None, None]
    return [(
        "Independent places", "Noise with the mean and the standard deviation of each channel, independent at each "
        "place. This makes texture, not images: what makes an image is how places depend on each other, which this "
        "model leaves to a diffusion model. Where even its colours are not those of images, single latents depend on "
        "their surroundings.",
        mean + std * torch.randn(shape, generator=generator),
    )]  # fmt: skip


def _of_codes(model: Autoencoder, images: Encoded, settings: Settings) -> list[tuple[str, str, Tensor]]:
    assert images.indices is not None
    codebook = model.codebook
    assert codebook is not None, "a model with indices has a codebook"
    if settings.prior is not None:
        prior = settings.prior.prior
        # Drawn on the prior's device, whose global generator is forked, so that nothing else changes.
        generator = torch.Generator(prior.device).manual_seed(settings.generator("prior").initial_seed())
        indices = prior.sample(_SPATIAL, generator=generator)
        return [(
            "The prior's samples", f"Codes of the prior {escape(settings.prior.name)}, drawn one after the other, each "
            "given those before it, and decoded.", codebook.latents(indices.to(model.device)),
        )]  # fmt: skip
    shape = (_SPATIAL, *images.indices.shape[1:])
    places = torch.randint(
        len(images.indices) * images.indices[0].numel(), shape, generator=settings.generator("prior")
    )
    if images.indices.ndim == 4:  # each level has codes of its own
        levels = images.indices.transpose(0, 1).flatten(1)
        drawn = torch.stack([row[places[:, q] % len(row)] for q, row in enumerate(levels)], dim=1)
    else:
        drawn = images.indices.flatten()[places]
    return [(
        "Independent codes", "Codes as often as the images use them, independent at each place. This makes texture, "
        "not images: how places depend on each other is left to a prior. scripts/train_code_prior.py trains one, and "
        "--prior shows its samples here.", codebook.latents(drawn.to(model.device)),
    )]  # fmt: skip
