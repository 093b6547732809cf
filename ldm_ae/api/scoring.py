"""Scores of images in memory, and the evaluation of a model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from ldm_ae.api.loading import load
from ldm_ae.comparison.comparison import scores_frame
from ldm_ae.core.devices import pick_device
from ldm_ae.core.errors import UserError
from ldm_ae.core.precision import DTYPES
from ldm_ae.data import EvaluationLoader, ImageTransform, WholeTransform, open_source
from ldm_ae.evaluation import Evaluation, Metric, named_metrics, write_report
from ldm_ae.evaluation import evaluate as evaluate_batches
from ldm_ae.evaluation.metrics.interface import Setting
from ldm_ae.evaluation.report.summary import summary_lines
from ldm_ae.evaluation.report.write import REPORT_FILES
from ldm_ae.evaluation.scoring import BASELINE_PREFIX, Scoring
from ldm_ae.images.in_memory import Images, Range, pixel_values_of
from ldm_ae.images.views import parse_view
from ldm_ae.io.files import new_folder, require_new_folder
from ldm_ae.models import Autoencoder

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
    device: str | torch.device = "auto",
) -> dict[str, float]:
    """Compare images with their reconstructions, by the metrics of `ldm-ae evaluate`, which gives the same values.

    Both are rounded to 8 bits first, and reconstructions are clamped to [-1, 1].

    Args:
        originals: PIL images, paths, arrays or tensors, as `Autoencoder.encode_images` takes them.
        reconstructions: As many images of the same sizes, of any of these types.
        metrics: Names of metrics that compare images, or one name; `ldm_ae.evaluation.METRICS` has all.
        perceptual: The network of `perceptual`: `stlpips_vgg` by default, `lpips_alex` as in most papers.
        value_range: Range of floating-point images, where it is not [0, 1] for arrays and [-1, 1] for tensors.
        device: Device to run on; `auto` picks an accelerator if there is one.

    Returns:
        Means over the images: `psnr` in dB and `ssim`, higher is better; the distance of the perceptual network under
        its name, such as `stlpips_vgg`, lower is better.

    Raises:
        UserError: different numbers or sizes of images, images that a metric cannot score, or an unknown metric.
    """
    real = pixel_values_of(originals, value_range=value_range, name="originals")
    decoded = pixel_values_of(reconstructions, value_range=value_range, clamp=True, name="reconstructions")
    if len(real) != len(decoded):
        raise UserError(f"originals and reconstructions must be as many, got {len(real)} and {len(decoded)}")
    place = pick_device(device) if isinstance(device, str) else device
    names = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    scoring = Scoring(_metrics(names, perceptual, place), Setting(model=None, device=place))
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
        scores = self.evaluation.scores
        return {name: value for name, value in scores.items() if not name.startswith(BASELINE_PREFIX)}

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
    size: int | Literal["native"] | None = None,
    crop: Literal["center", "adm"] = "center",
    limit: int | None = None,
    metrics: str | Sequence[str] = ("default",),
    perceptual: str | None = None,
    view: str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    batch_size: int = 8,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Score a model on images, as `ldm-ae evaluate` does.

    Args:
        model: What `load` or `wrap` returns, evaluated on its device and in its dtype; it does not change. Or what
            `load` takes, evaluated in fp32.
        images: Any image source of the commands: a folder, WebDataset tars, Parquet files, `hf:owner/name`.
        size: Side of the central square crop in pixels, or `native` for each image's own size, cropped to multiples of
            the model's downsample factor; by default the size that the model was trained at.
        crop: `adm` resizes as ADM's `center_crop_arr` does, which published scores on ImageNet use.
        limit: Number of images; None for all.
        metrics: Names of metrics, or one name; `default` is the default set of `ldm-ae evaluate`, `compare` the
            set for a comparison of models.
        perceptual: The network of `perceptual`, such as `lpips_alex`, or `none`.
        view: How networks that know RGB only see a model's other images, such as `bands:nir,red,green`; see
            `ldm-ae evaluate --help`.
        out: A new folder for metrics.json and report.html; None writes nothing.
        overwrite: Replace an earlier report in `out`.
        batch_size: Images at a time.
        workers: Processes that decode images; 0 decodes in this process.
        progress: Called after every batch with the number of images done.

    Raises:
        UserError: no images, a size that does not fit the model, a crop that is unknown or does not go with the size,
            an unknown metric, a folder with other files, or a reconstruction that is not finite.
    """
    if not isinstance(images, str | Path):
        raise UserError(
            f"images must be a folder or another source, got {type(images).__name__}; ldm_ae.metrics takes images in "
            "memory"
        )
    if out is not None:
        require_new_folder(out, "the report", own_files=REPORT_FILES, overwrite=overwrite)
    source = open_source(str(images))
    name = type(model.net).__name__ if isinstance(model, Autoencoder) else str(model)
    loaded = copy.deepcopy(model) if isinstance(model, Autoencoder) else load(model)
    transform = _transform(loaded, size, crop)
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}; it must be at least 1")
    if batch_size < 1 or workers < 0:
        raise UserError(f"batch_size must be at least 1 and workers at least 0, got {batch_size} and {workers}")
    loader = EvaluationLoader(
        source, transform, batch_size=batch_size, workers=workers,
        indices=range(min(limit or len(source), len(source))),
    )  # fmt: skip
    precision = next((name for name, dtype in DTYPES.items() if dtype == loaded.dtype), "fp32")
    chosen = named_metrics([metrics] if isinstance(metrics, str) else metrics, perceptual=perceptual)
    evaluation = evaluate_batches(
        loaded, loader, source=str(images), transform_description=transform.describe(), model_name=name,
        metrics=chosen, precision=precision, device=loaded.device, progress=progress,
        view=None if view is None else parse_view(view),
    )  # fmt: skip
    if out is None:
        return Report(evaluation=evaluation)
    with new_folder(out) as folder:
        return Report(evaluation=evaluation, page=write_report(evaluation, folder))


def _transform(
    model: Autoencoder, size: int | str | None, crop: Literal["center", "adm"]
) -> ImageTransform | WholeTransform:
    if crop not in ("center", "adm"):
        raise UserError(f'crop is {crop!r}; it must be "center" or "adm"')
    if size == "native":
        if crop != "center":
            raise UserError(f"size='native' and crop={crop!r} exclude each other; remove one of them")
        return WholeTransform(None, multiple=model.latent_spec.image_multiple, pixels=model.pixel_spec)
    side = model.sample_size if size is None else size
    if not isinstance(side, int):
        raise UserError(f"size must be a number of pixels or 'native', got {size!r}")
    model.latent_spec.latent_size(side, side)
    return ImageTransform(size=side, crop=crop, pixels=model.pixel_spec)


@lru_cache(maxsize=4)
def _metrics(names: tuple[str, ...], perceptual: str | None, device: torch.device) -> list[Metric]:
    """Return metrics, whose networks stay on their device for the next call."""
    del device
    return named_metrics(names, perceptual=perceptual)


def _require_all(scoring: Scoring) -> None:
    for name, why in scoring.skipped.items():
        raise UserError(f"{name} cannot be computed: {why}. Choose others by metrics=(...)")
