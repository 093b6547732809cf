"""Scores of images in memory, and the evaluation of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from ldm_ae.api._models import require_at_least, used_model
from ldm_ae.api._transforms import ColourProfiles, Crop, Pixels, Size, chosen_pixels, image_transform, transform_options
from ldm_ae.comparison.comparison import scores_frame
from ldm_ae.core.devices import pick_device
from ldm_ae.core.errors import UserError
from ldm_ae.data import EvaluationLoader, open_source
from ldm_ae.evaluation import Evaluation, Metric, named_metrics, write_report
from ldm_ae.evaluation import evaluate as evaluate_batches
from ldm_ae.evaluation.metrics.interface import Setting
from ldm_ae.evaluation.metrics.rate import Rate
from ldm_ae.evaluation.report.summary import summary_lines
from ldm_ae.evaluation.report.write import REPORT_FILES
from ldm_ae.evaluation.scoring import Scoring, own_scores
from ldm_ae.images.in_memory import Images, Range, pixel_values_of
from ldm_ae.images.in_memory_samples import pixel_values_of_samples
from ldm_ae.images.pixels import RGB
from ldm_ae.images.views import parse_view
from ldm_ae.io.files import new_folder, require_new_folder
from ldm_ae.models import Autoencoder
from ldm_ae.priors import SavedPrior, load_prior

if TYPE_CHECKING:
    import pandas

DEFAULT_METRICS = ("psnr", "ssim", "perceptual")


@torch.no_grad()
def metrics(
    originals: Images,
    reconstructions: Images,
    *,
    metrics: str | Sequence[str] = DEFAULT_METRICS,
    perceptual: str | None = None,
    value_range: Range | None = None,
    pixels: Pixels = None,
    view: str | None = None,
    device: str | torch.device = "auto",
) -> dict[str, float]:
    """Compare images with their reconstructions, by the metrics of `ldm-ae evaluate`, which gives the same values.

    Both are rounded to what files hold first, of RGB to 8 bits, and reconstructions are clamped to [-1, 1].

    Args:
        originals: PIL images, paths, arrays or tensors, as `Autoencoder.encode_images` takes them.
        reconstructions: As many images of the same sizes, of any of these types.
        metrics: Names of metrics that compare images, or one name; `ldm_ae.evaluation.METRICS` has all.
        perceptual: The network of `perceptual`: `stlpips_vgg` by default, `lpips_alex` as in most papers.
        value_range: Range of floating-point images, where it is not [0, 1] for arrays and [-1, 1] for tensors.
        pixels: The images, where they are not RGB in 8 bits: a model, a `PixelSpec`, or what `model.init_args.pixels`
            of a recipe takes. Images are then paths, arrays of stored samples or tensors in [-1, 1].
        view: How networks that know RGB only see other images, such as `bands:nir,red,green`.
        device: Device to run on; `auto` picks an accelerator if there is one.

    Returns:
        Means over the images: `psnr` in dB and `ssim`, higher is better; the distance of the perceptual network under
        its name, such as `stlpips_vgg`, lower is better.

    Raises:
        UserError: different numbers or sizes of images, images that a metric cannot score, or an unknown metric.
    """
    spec = chosen_pixels(pixels)
    if spec == RGB:
        real = pixel_values_of(originals, value_range=value_range, name="originals")
        decoded = pixel_values_of(reconstructions, value_range=value_range, clamp=True, name="reconstructions")
    else:
        real, decoded = (
            pixel_values_of_samples(images, spec, size=None, value_range=value_range, name=name)
            for images, name in ((originals, "originals"), (reconstructions, "reconstructions"))
        )
    if len(real) != len(decoded):
        raise UserError(f"originals and reconstructions must be as many, got {len(real)} and {len(decoded)}")
    place = pick_device(device) if isinstance(device, str) else device
    names = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    seen = None if view is None else parse_view(view)
    setting = Setting(model=None, device=place, images=spec, view=seen)
    scoring = Scoring(_metrics(names, perceptual, place), setting)
    for i, (original, reconstruction) in enumerate(zip(real, decoded, strict=True)):
        if original.shape != reconstruction.shape:
            sizes = " and ".join(f"{image.shape[1]}x{image.shape[2]}" for image in (original, reconstruction))
            raise UserError(f"image {i} and its reconstruction must have one size, got height x width {sizes}")
        scoring.update(reconstruction[None].to(place), original[None].to(place))
        _require_all(scoring)
    scores = scoring.compute()
    _require_all(scoring)
    return scores


@dataclass(frozen=True, kw_only=True, repr=False)
class Report:
    """The result of `evaluate`. Its representation is the table that `ldm-ae evaluate` prints."""

    evaluation: Evaluation
    """Everything: scores of each image, the protocol, images to show, statistics of latents and codes."""
    page: Path | None = None
    """The written report.html, if a folder was given."""

    @property
    def metrics(self) -> dict[str, float]:
        """The model's scores by name, without those of the bicubic thumbnail."""
        return own_scores(self.evaluation.scores)

    def to_pandas(self) -> pandas.DataFrame:
        """Return the scores as a DataFrame of one row, like that of `ldm_ae.compare`.

        Raises:
            UserError: pandas is not installed.
        """
        model = self.evaluation.protocol["model"]
        assert isinstance(model, dict)
        return scores_frame({str(model["name"]): self.metrics})

    def write(self, folder: str | Path) -> Path:
        """Write metrics.json and report.html into a folder, which is created if necessary; return the page's path."""
        return write_report(self.evaluation, folder)

    def __repr__(self) -> str:
        return "\n".join(summary_lines(self.evaluation))


def evaluate(
    model: Autoencoder | str | Path,
    images: str | Path,
    *,
    size: Size = None,
    resize: int | Literal["none"] | None = None,
    crop: Crop = "center",
    colour_profiles: ColourProfiles = "convert",
    max_pixels: int | None = None,
    limit: int | None = None,
    metrics: str | Sequence[str] = ("default",),
    perceptual: str | None = None,
    view: str | None = None,
    features: str | None = None,
    inception_weights: str | None = None,
    dinov2: str | None = None,
    prior: str | Path | SavedPrior | None = None,
    precision: str | None = None,
    device: str | torch.device | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    batch_size: int = 8,
    workers: int = 0,
    max_bad_fraction: float = 0.01,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Score a model on images, as `ldm-ae evaluate` does.

    Args:
        model: What `load` or `wrap` returns, evaluated on its device and in its dtype; it does not change. Or what
            `load` takes, evaluated in fp32 on an accelerator if there is one. `load` also takes the configuration of a
            single file, and `ldm_ae.models.Tiled` bounds the memory of large images.
        images: Any image source of the commands: a folder, WebDataset tars, Parquet files, `hf:owner/name`.
        size: Side of the central square crop in pixels, or `native` for each image's own size, cropped to multiples of
            the model's downsample factor; by default the size that the model was trained at.
        resize: Length to which the shorter side is scaled before the crop, or `none`; by default the size.
        crop: `adm` resizes as ADM's `center_crop_arr` does, which published scores on ImageNet use.
        colour_profiles: `convert` to sRGB by the images' profiles, or `ignore` these, as published data sets did.
        max_pixels: Skip larger images; by default those of more than 89 million pixels.
        limit: Number of images; None for all.
        metrics: Names of metrics, or one name; `default` is the default set of `ldm-ae evaluate`, `compare` the
            set for a comparison of models.
        perceptual: The network of `perceptual`, such as `lpips_alex`, or `none`.
        view: How networks that know RGB only see a model's other images, such as `bands:nir,red,green`; see
            `ldm-ae evaluate --help`.
        features: The network of the Fréchet distance: `auto`, `inception`, `efficientnet_lite0` or `none`.
        inception_weights: File of FID's Inception weights, for a machine without a network.
        dinov2: DINOv2 of the metric `rfdd`: a folder, or a name on the hub.
        prior: Prior over the model's codes, which adds their rate under it: what `ldm_ae.priors.load_prior` returns,
            or its folder.
        precision: `auto`, `fp32`, `bf16` or `fp16`; by default that of the model.
        device: Device to run on; `auto` picks an accelerator if there is one. By default that of the model.
        out: A new folder for metrics.json and report.html; None writes nothing.
        overwrite: Replace an earlier report in `out`.
        batch_size: Images at a time.
        workers: Processes that decode images; 0 decodes in this process.
        max_bad_fraction: Fraction of unreadable images above which the evaluation fails.
        progress: Called after every batch with the number of images done.

    Raises:
        UserError: no images, a size that does not fit the model, a crop that is unknown or does not go with the size,
            an unknown metric, a network or a prior that no metric uses, a folder with other files, or a reconstruction
            that is not finite.
    """
    if not isinstance(images, str | Path):
        raise UserError(
            f"images must be a folder or another source, got {type(images).__name__}; ldm_ae.metrics takes images in "
            "memory"
        )
    options = transform_options(
        size=size, resize=resize, crop=crop, colour_profiles=colour_profiles, max_pixels=max_pixels
    )
    if out is not None:
        require_new_folder(out, "the report", own_files=REPORT_FILES, overwrite=overwrite)
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    chosen = named_metrics(
        names, perceptual=perceptual, features=features, inception_weights=inception_weights, dinov2=dinov2
    )
    if prior is not None and not any(metric.name == Rate.name for metric in chosen):
        raise UserError(f"prior has no effect with metrics {' '.join(names)}; remove it, or add {Rate.name}")
    saved = load_prior(prior) if isinstance(prior, str | Path) else prior
    source = open_source(str(images))
    used = used_model(model, precision=precision, device=device)
    transform = image_transform(used.model, size, options)
    require_at_least(1, limit=limit)
    if batch_size < 1 or workers < 0:
        raise UserError(f"batch_size must be at least 1 and workers at least 0, got {batch_size} and {workers}")
    loader = EvaluationLoader(
        source, transform, batch_size=batch_size, workers=workers, max_bad_fraction=max_bad_fraction,
        indices=range(min(limit or len(source), len(source))),
    )  # fmt: skip
    evaluation = evaluate_batches(
        used.model, loader, source=str(images), transform_description=transform.describe(), model_name=used.name,
        view=None if view is None else parse_view(view),
        metrics=chosen, prior=saved, precision=used.precision, device=used.device,
        progress=progress,
    )  # fmt: skip
    if out is None:
        return Report(evaluation=evaluation)
    with new_folder(out) as folder:
        return Report(evaluation=evaluation, page=write_report(evaluation, folder))


@lru_cache(maxsize=4)
def _metrics(names: tuple[str, ...], perceptual: str | None, device: torch.device) -> list[Metric]:
    """Return metrics, whose networks stay on their device for the next call."""
    del device
    return named_metrics(names, perceptual=perceptual)


def _require_all(scoring: Scoring) -> None:
    for name, why in scoring.skipped.items():
        raise UserError(f"{name} cannot be computed: {why}. Choose others by metrics=(...)")
