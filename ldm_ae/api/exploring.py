"""Exploration of a model's latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from ldm_ae.api._models import require_at_least, used_model
from ldm_ae.api._transforms import ColourProfiles, Crop, square_transform, transform_options
from ldm_ae.data import EvaluationLoader, open_source
from ldm_ae.exploration import EXPLORATION_FILES, LIMIT, Exploration, spread
from ldm_ae.exploration import explore as explore_batches
from ldm_ae.io.files import new_folder, require_new_folder
from ldm_ae.models import Autoencoder
from ldm_ae.priors import SavedPrior, load_prior


def explore(
    model: Autoencoder | str | Path,
    images: str | Path,
    *,
    size: int | None = None,
    resize: int | Literal["none"] | None = None,
    crop: Crop = "center",
    colour_profiles: ColourProfiles = "convert",
    max_pixels: int | None = None,
    limit: int = LIMIT,
    pictures: int = 4,
    seed: int = 0,
    prior: str | Path | SavedPrior | None = None,
    precision: str | None = None,
    device: str | torch.device | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    batch_size: int = 8,
    workers: int = 0,
    max_bad_fraction: float = 0.01,
    progress: Callable[[str, int, int], None] | None = None,
) -> Exploration:
    """Show what a model's latents hold, as `ldm-ae explore` does.

    Args:
        model: What `load` or `wrap` returns, used on its device and in its dtype; it does not change. Or what `load`
            takes, used in fp32 on an accelerator if there is one.
        images: Any image source of the commands: a folder, WebDataset tars, Parquet files, `hf:owner/name`.
        size: Side of the central square crop in pixels; by default the size that the model was trained at.
        resize: Length to which the shorter side is scaled before the crop, or `none`; by default the size.
        crop: `adm` resizes as ADM's `center_crop_arr` does.
        colour_profiles: `convert` to sRGB by the images' profiles, or `ignore` these.
        max_pixels: Skip larger images; by default those of more than 89 million pixels.
        limit: Number of images, evenly spread over `images`; their latents are kept in memory.
        pictures: Number of images that a section shows.
        seed: Seed of samples, t-SNE and UMAP.
        prior: Prior over the model's codes, whose samples are shown: what `ldm_ae.priors.load_prior` returns, or its
            folder.
        precision: `auto`, `fp32`, `bf16` or `fp16`; by default that of the model.
        device: Device to run on; `auto` picks an accelerator if there is one. By default that of the model.
        out: A new folder for explore.html and exploration.json; None writes nothing.
        overwrite: Replace an earlier page in `out`.
        batch_size: Images at a time.
        workers: Processes that decode images; 0 decodes in this process.
        max_bad_fraction: Fraction of unreadable images above which the exploration fails.
        progress: Called with the name of each stage, the number of units done, and their total.

    Returns:
        The exploration. `values` has the numbers of each section, `write` makes the page.

    Raises:
        UserError: no images, a size that does not fit the model, a prior over other codes, a folder with other files,
            or an image that is not finite.
    """
    options = transform_options(
        size=size, resize=resize, crop=crop, colour_profiles=colour_profiles, max_pixels=max_pixels
    )
    if out is not None:
        require_new_folder(out, "the page", own_files=EXPLORATION_FILES, overwrite=overwrite)
    require_at_least(1, limit=limit, pictures=pictures, batch_size=batch_size)
    require_at_least(0, seed=seed, workers=workers)
    saved = load_prior(prior) if isinstance(prior, str | Path) else prior
    source = open_source(str(images))
    used = used_model(model, precision=precision, device=device)
    transform = square_transform(used.model, size, options)
    chosen = spread(len(source), limit)
    loader = EvaluationLoader(
        source, transform, batch_size=batch_size, workers=workers, max_bad_fraction=max_bad_fraction, indices=chosen
    )
    found = explore_batches(
        used.model, loader, count=len(chosen), source=str(images), transform_description=transform.describe(),
        model_name=used.name, classes=source.account().classes, prior=saved, pictures=pictures, seed=seed,
        precision=used.precision, device=used.device, batch_size=batch_size,
        progress=progress,
    )  # fmt: skip
    if out is None:
        return found
    with new_folder(out) as folder:
        return replace(found, page=found.write(folder))
