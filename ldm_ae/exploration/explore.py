"""The exploration of a model's latents: every section of the page, in its order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from ldm_ae.core.errors import UserError
from ldm_ae.data import Batch
from ldm_ae.evaluation.prepared import prepare
from ldm_ae.exploration.arithmetic import arithmetic
from ldm_ae.exploration.channels import channels
from ldm_ae.exploration.codebook_atlas import codebook_atlas
from ldm_ae.exploration.encoded import encode_images
from ldm_ae.exploration.exploration import Exploration
from ldm_ae.exploration.interpolation import interpolation
from ldm_ae.exploration.latent_map import latent_map
from ldm_ae.exploration.maps_of_codes import maps_of_codes
from ldm_ae.exploration.samples import samples
from ldm_ae.exploration.settings import Settings
from ldm_ae.exploration.traversals import traversals
from ldm_ae.exploration.uncertainty import uncertainty
from ldm_ae.images.views import shown_view
from ldm_ae.models import Autoencoder
from ldm_ae.priors import SavedPrior

SECTIONS = (
    latent_map, channels, uncertainty, traversals, interpolation, arithmetic, samples, maps_of_codes, codebook_atlas,
)  # fmt: skip
"""The sections, each a function of (model, images, settings)."""
LIMIT = 500
"""Number of images by default."""


@torch.no_grad()
def explore(
    model: Autoencoder,
    loader: Iterable[Batch],
    *,
    count: int,
    source: str,
    transform_description: Mapping[str, object],
    model_name: str,
    classes: Sequence[str] = (),
    prior: SavedPrior | None = None,
    pictures: int = 4,
    seed: int = 0,
    precision: str = "fp32",
    device: str | torch.device = "auto",
    batch_size: int = 8,
    progress: Callable[[str, int, int], None] | None = None,
) -> Exploration:
    """Encode images and make every section of the page.

    Memory grows with the number of images: their latents are kept.

    Args:
        model: A model in float32; it is put in eval mode, on the device and in the precision, and stays there
            (`models.for_inference`).
        loader: Batches of images of one size; its `rejected` (key -> reason), if it has one, is added to the protocol.
        count: Number of images that the loader visits.
        source: Origin of the images, in words.
        transform_description: The transform applied to the images, as JSON values.
        model_name: Origin of the model, in words.
        classes: Names of the labels 0, 1, ...; empty if they have none.
        prior: Prior over this model's codes, of which samples are drawn.
        pictures: Number of images that a section shows.
        seed: Seed of all draws, of t-SNE and of UMAP.
        precision: `auto`, `fp32`, `bf16` or `fp16`, for the model only.
        device: Device to run on; `auto` picks an accelerator if there is one.
        batch_size: Latents that are decoded at a time.
        progress: Called with the name of each stage, the number of units done, and their total.

    Raises:
        UserError: No images; latents or images that are not finite; a prior over other codes, or for a model without
            codes.
    """
    if pictures < 1:
        raise UserError(f"pictures is {pictures}; it must be at least 1")
    report = progress or (lambda *_: None)
    prepared = prepare(model, name=model_name, prior=prior, precision=precision, device=device)
    model = prepared.model
    settings = Settings(
        pictures=pictures, seed=seed, batch_size=batch_size, precision=prepared.precision,
        view=shown_view(model.pixel_spec), prior=prior,
    )  # fmt: skip
    images = encode_images(
        model, loader, settings, count=count, classes=classes,
        progress=lambda done: report("encoding", done, count),
    )  # fmt: skip
    sections = []
    for done, section in enumerate(SECTIONS):
        report("exploring", done, len(SECTIONS))
        sections.append(section(model, images, settings))
    report("exploring", len(SECTIONS), len(SECTIONS))
    height, width = images.levels.shape[-2:]
    protocol: dict[str, object] = {
        "model": {
            **prepared.description,
            "downsample_factor": model.latent_spec.downsample_factor,
            "latent_channels": model.latent_spec.channels,
        },
        "images": {
            "source": source, "count": len(images.keys), "size": f"{height}x{width}",
            "transform": dict(transform_description), "rejected": dict(getattr(loader, "rejected", {})),
        },
        "seed": seed,
        "pictures": pictures,
        **prepared.conditions,
    }  # fmt: skip
    return Exploration(sections=sections, protocol=protocol)
