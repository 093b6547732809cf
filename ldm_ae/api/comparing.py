"""Comparison of several models."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from ldm_ae.api._transforms import ColourProfiles, Crop, Size, transform_options
from ldm_ae.comparison import (
    CompareConfig,
    Comparison,
    Contestant,
    DiffusionPlan,
    comparison_folder,
    display_names,
    require_matplotlib,
    split_name,
    write_comparison,
)
from ldm_ae.comparison import compare as compare_models
from ldm_ae.core.errors import UserError
from ldm_ae.data import open_source
from ldm_ae.images.views import parse_view
from ldm_ae.models import Autoencoder, load_autoencoder
from ldm_ae.models.loading.places import local_place

Model = Autoencoder | str | Path


def compare(
    models: Sequence[Model] | Mapping[str, Model],
    images: str | Path,
    *,
    size: Size = None,
    resize: int | Literal["none"] | None = None,
    crop: Crop = "center",
    colour_profiles: ColourProfiles = "convert",
    max_pixels: int | None = None,
    limit: int | None = None,
    metrics: str | Sequence[str] = ("compare",),
    perceptual: str | None = None,
    features: str | None = None,
    view: str | None = None,
    inception_weights: str | None = None,
    dinov2: str | None = None,
    baseline: str | Sequence[str] = (),
    diffusion: int | None = None,
    diffusion_images: str | Path | None = None,
    precision: str = "fp32",
    device: str | torch.device = "auto",
    out: str | Path | None = None,
    overwrite: bool = False,
    figures: Literal["pdf", "png"] | None = None,
    pictures: int = 6,
    batch_size: int = 8,
    workers: int = 0,
    max_bad_fraction: float = 0.01,
    progress: Callable[[str, int, int], None] | None = None,
) -> Comparison:
    """Compare models on the same images, as `ldm-ae compare` does.

    Args:
        models: What `load` or `wrap` returns, in float32, which does not change; or what `load` takes. A mapping names
            the models.
        images: Any image source of the commands: a folder, WebDataset tars, Parquet files, `hf:owner/name`.
        size: Side of the central square crop in pixels, rounded down to a size that fits all models, or `native` for
            each image's own size, cropped likewise; by default the smallest size that a model was trained at.
        resize: Length to which the shorter side is scaled before the crop, or `none`; by default the size.
        crop: `adm` for the crop of published scores on ImageNet.
        colour_profiles: `convert` to sRGB by the images' profiles, or `ignore` these, as published data sets did.
        max_pixels: Skip larger images; by default those of more than 89 million pixels.
        limit: Number of images; None for all.
        metrics: Names of metrics, or one name; `compare` is everything that needs no download and no labels.
        perceptual: The network of `perceptual`, such as `lpips_alex`, or `none`.
        features: The network of the Fréchet distance: `auto`, `inception`, `efficientnet_lite0` or `none`.
        view: How networks that know RGB only see other images, such as `bands:nir,red,green`.
        inception_weights: File of FID's Inception weights, for a machine without a network.
        dinov2: DINOv2 of the metric `rfdd`: a folder, or a name on the hub.
        baseline: Image codecs to measure at the models' rates: `jpeg`, `webp`, `avif`.
        diffusion: Steps of a small diffusion network, the same for each model, whose loss and samples are scored.
        diffusion_images: Images to train that network on, scored on `images`; by default three quarters of `images`,
            scored on the rest.
        precision: `auto`, `fp32`, `bf16` or `fp16`, for all models.
        device: Device to run on; `auto` picks an accelerator if there is one.
        out: Folder for the page and all files, in which the same call resumes; None writes nothing.
        overwrite: Replace an earlier comparison in `out`.
        figures: With `out`: also write charts and pictures for papers.
        pictures: Number of images to keep for the page.
        batch_size: Images at a time.
        workers: Processes that decode images; 0 decodes in this process.
        max_bad_fraction: Fraction of unreadable images above which the comparison fails.
        progress: Called with the name of each stage, the number of units done, and their total.

    Returns:
        The comparison. `scores` has the scores by the models' names, `to_pandas()` a DataFrame, `failed` the reasons
        why models are missing.

    Raises:
        UserError: a model that does not exist, no model that can be compared, no images, an unknown metric, or a folder
            with other files or a comparison under another protocol.
    """
    if figures is not None:
        if out is None:
            raise UserError("figures has no effect without out; remove it, or give a folder")
        require_matplotlib()
    if diffusion_images is not None and diffusion is None:
        raise UserError("diffusion_images has no effect without diffusion; remove it, or give diffusion=STEPS")
    options = transform_options(
        size=size, resize=resize, crop=crop, colour_profiles=colour_profiles, max_pixels=max_pixels
    )
    contestants = _contestants(models)
    source = open_source(str(images))
    config = CompareConfig(
        size=size, limit=limit, metrics=[metrics] if isinstance(metrics, str) else metrics,
        view=None if view is None else parse_view(view),
        networks={
            "perceptual": perceptual, "features": features, "inception_weights": inception_weights, "dinov2": dinov2
        },
        transform=options, precision=precision, device=device, batch_size=batch_size, workers=workers,
        max_bad_fraction=max_bad_fraction, pictures=pictures,
        codecs=[baseline] if isinstance(baseline, str) else baseline, diffusion=_plan(diffusion, diffusion_images),
    )  # fmt: skip
    with _folder(out, overwrite) as folder:
        found = compare_models(contestants, source, folder, config, source_name=str(images), progress=progress)
        if out is None:
            return replace(found, models=[replace(model, folder=None) for model in found.models])
        return replace(found, page=write_comparison(found, folder, figures=figures))


def _plan(steps: int | None, images: str | Path | None) -> DiffusionPlan | None:
    if steps is None:
        return None
    train = None if images is None else open_source(str(images))
    return DiffusionPlan(steps=steps, train=train, train_name="" if images is None else str(images))


@contextmanager
def _folder(out: str | Path | None, overwrite: bool) -> Iterator[Path]:
    """Yield the folder of the results; without one, a temporary folder, from which everything is read in time."""
    if out is not None:
        with comparison_folder(out, overwrite=overwrite) as folder:
            yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="ldm_ae-") as place:
            yield Path(place)


def _contestants(models: Sequence[Model] | Mapping[str, Model]) -> list[Contestant]:
    if isinstance(models, str | Path | Autoencoder):
        raise UserError("models must be a list or a mapping of models, got one model; ldm_ae.evaluate scores one")
    if isinstance(models, Mapping):
        pairs = [(name, model) for name, model in models.items()]
    else:
        pairs = [split_name(model) if isinstance(model, str) else ("", model) for model in models]
    if not pairs:
        raise UserError("there are no models to compare; give some")
    shown = [(name, type(m.net).__name__ if isinstance(m, Autoencoder) else str(m)) for name, m in pairs]
    names = display_names(shown)
    return [
        Contestant(name=name, model=text, open=_opener(model))
        for name, (_, text), (_, model) in zip(names, shown, pairs, strict=True)
    ]


def _opener(model: Model) -> Callable[[], Autoencoder]:
    if isinstance(model, Autoencoder):
        return lambda: copy.deepcopy(model)
    return partial(load_autoencoder, local_place(model))
