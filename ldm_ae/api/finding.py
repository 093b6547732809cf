"""The strangest images of a data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from ldm_ae.api._models import require_at_least, used_model
from ldm_ae.api._transforms import ColourProfiles, Crop, square_transform, transform_options
from ldm_ae.io.files import new_folder, require_new_folder
from ldm_ae.models import Autoencoder
from ldm_ae.outliers import OUTLIER_FILES, Loading, Outliers, open_sets
from ldm_ae.outliers import find_outliers as find_in_sets
from ldm_ae.priors import SavedPrior, load_prior


def find_outliers(
    model: Autoencoder | str | Path,
    images: str | Path,
    *,
    reference: str | Path | None = None,
    against: str | Path | None = None,
    scores: str | Sequence[str] = (),
    prior: str | Path | SavedPrior | None = None,
    top: int = 20,
    size: int | None = None,
    resize: int | Literal["none"] | None = None,
    crop: Crop = "center",
    colour_profiles: ColourProfiles = "convert",
    max_pixels: int | None = None,
    limit: int | None = None,
    precision: str | None = None,
    device: str | torch.device | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    batch_size: int = 8,
    workers: int = 0,
    max_bad_fraction: float = 0.01,
    progress: Callable[[str, int, int], None] | None = None,
) -> Outliers:
    """Find the strangest images of a data set, as `ldm-ae outliers` does.

    Args:
        model: What `load` or `wrap` returns, used on its device and in its dtype; it does not change. Or what `load`
            takes, used in fp32 on an accelerator if there is one.
        images: Any image source of the commands: a folder, WebDataset tars, Parquet files, `hf:owner/name`.
        reference: Normal images for scores that compare with a data set; by default `images`, with `against` every
            second one of them.
        against: Strange images, for the AUROC of each score with `images` as normal ones.
        scores: Names of scores, or one name; the first one ranks the images. By default all that the model has.
        prior: Prior over the model's codes, which scores them: what `ldm_ae.priors.load_prior` returns, or its folder.
        top: Number of the strangest images to show.
        size: Side of the central square crop in pixels; by default the size that the model was trained at.
        resize: Length to which the shorter side is scaled before the crop, or `none`; by default the size.
        crop: `adm` resizes as ADM's `center_crop_arr` does.
        colour_profiles: `convert` to sRGB by the images' profiles, or `ignore` these.
        max_pixels: Skip larger images; by default those of more than 89 million pixels.
        limit: Number of images of each set; None for all.
        precision: `auto`, `fp32`, `bf16` or `fp16`; by default that of the model.
        device: Device to run on; `auto` picks an accelerator if there is one. By default that of the model.
        out: A new folder for outliers.html, outliers.csv and outliers.json; None writes nothing.
        overwrite: Replace an earlier result in `out`.
        batch_size: Images at a time.
        workers: Processes that decode images; 0 decodes in this process.
        max_bad_fraction: Fraction of unreadable images above which the search fails.
        progress: Called with the name of each stage, the number of units done, and their total.

    Returns:
        The scores of all images by name, their order, and the strangest ones with their reconstructions.

    Raises:
        UserError: no images, a size that does not fit the model, a score that is unknown or that the model does not
            have, a prior over other codes, a folder with other files, or a reconstruction that is not finite.
    """
    options = transform_options(
        size=size, resize=resize, crop=crop, colour_profiles=colour_profiles, max_pixels=max_pixels
    )
    if out is not None:
        require_new_folder(out, "the page", own_files=OUTLIER_FILES, overwrite=overwrite)
    require_at_least(1, limit=limit, top=top, batch_size=batch_size)
    require_at_least(0, workers=workers)
    saved = load_prior(prior) if isinstance(prior, str | Path) else prior
    sets = open_sets(str(images), reference, against, limit=limit)
    used = used_model(model, precision=precision, device=device)
    loading = Loading(
        transform=square_transform(used.model, size, options), batch_size=batch_size,
        workers=workers, max_bad_fraction=max_bad_fraction,
    )  # fmt: skip
    found = find_in_sets(
        used.model, sets, loading, model_name=used.name,
        scores=(scores,) if isinstance(scores, str) else scores, prior=saved, top=top,
        precision=used.precision, device=used.device, progress=progress,
    )  # fmt: skip
    if out is None:
        return found
    with new_folder(out) as folder:
        return replace(found, page=found.write(folder))
