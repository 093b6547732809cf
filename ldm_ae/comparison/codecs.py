"""Image codecs at the rates of the compared models, on the same images and by the same metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ldm_ae.comparison.folder import CODECS as CODECS_FOLDER
from ldm_ae.comparison.images import SharedImages
from ldm_ae.comparison.result import ModelResult, Shown
from ldm_ae.comparison.stored import find_result, infos_of_json, read_pictures, result_folder, write_key, write_pictures
from ldm_ae.evaluation import Metric, ScoreInfo
from ldm_ae.evaluation.baselines import CodecRates, matched_rate, score_codec
from ldm_ae.evaluation.codecs import CODECS, Codec, cannot_code, missing_codec
from ldm_ae.images.pixels import RGB, PixelSpec
from ldm_ae.io.files import read_json, write_json, writing_folder

_TITLES: Mapping[str, str] = {"jpeg": "JPEG", "webp": "WebP", "avif": "AVIF"}
_SAME_RATE = 1e-6
"""Relative difference of rates that are one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CodecResult:
    """A codec at the rate of one or several models."""

    name: str
    """Display name, such as `JPEG at 0.75 bits per pixel`."""
    codec: str
    quality: int
    models: list[str]
    """Names of the models with this rate."""
    bits_per_pixel: float
    """Mean rate that was reached, of whole files."""
    scores: dict[str, float]
    infos: dict[str, ScoreInfo]
    pictures: list[Shown]
    note: str
    """A line where no quality reaches the models' rate."""

    @property
    def title(self) -> str:
        """Name of the codec, such as `JPEG`."""
        return _TITLES[self.codec]


@dataclass(frozen=True, kw_only=True)
class Codecs:
    """The codecs beside the models."""

    results: list[CodecResult]
    skipped: dict[str, str]
    """Reasons why codecs or models are missing, by name."""


def codec_colours(results: Sequence[CodecResult], models: int) -> dict[str, int]:
    """Return the numbers of the codecs' colours by title, which follow those of so many models."""
    return {title: models + number for number, title in enumerate(dict.fromkeys(result.title for result in results))}


def measure_codecs(
    names: Sequence[str],
    images: SharedImages,
    models: Sequence[ModelResult],
    metrics: Sequence[Metric],
    protocol: Mapping[str, Any],
    folder: Path,
    progress: Callable[[str, int, int], None] | None,
    pixels: PixelSpec = RGB,
) -> Codecs:
    """Score codecs at the rates of the models, or read the results that FOLDER/codecs/ holds.

    Args:
        names: Names of codecs, of `ldm_ae.evaluation.codecs.CODECS`.
        images: The images.
        models: The models, whose scores give the rates; a model without a rate is skipped.
        metrics: Metrics, of which those are computed that compare images.
        protocol: The protocol of the comparison, which is part of the results' keys.
        folder: Folder of the comparison.
        progress: Receives each stage of the work.
        pixels: Specification of the images. Codecs are skipped for images that they cannot hold.
    """
    wanted: list[Codec] = [codec for codec in CODECS if codec in names]
    skipped: dict[str, str] = {}
    for codec in wanted:
        if (reason := cannot_code(codec, pixels) or missing_codec(codec)) is not None:
            skipped[codec] = reason
    rates: list[tuple[float, str, list[str]]] = []
    for model in models:
        rate = matched_rate(model.scores)
        if rate is None:
            if wanted:
                skipped[model.name] = "no codec is matched to its rate, which needs the metrics rate and storage"
            continue
        same = [entry for entry in rates if abs(entry[0] - rate.bits_per_pixel) <= _SAME_RATE * rate.bits_per_pixel]
        if same:
            same[0][2].append(model.name)
        else:
            rates.append((rate.bits_per_pixel, rate.method, [model.name]))
    results = []
    for codec in wanted:
        if codec in skipped:
            continue
        known: CodecRates | None = None
        for number, (rate_of_models, method, of_models) in enumerate(rates):
            key = {"codec": codec, "bits_per_pixel": rate_of_models, "method": method, "protocol": dict(protocol)}
            found = find_result(folder / CODECS_FOLDER, codec, key)
            if found is None:
                known = known or CodecRates(codec, images)
                found = result_folder(folder / CODECS_FOLDER, codec, key)
                _measure(codec, known, images, rate_of_models, metrics, found, key)
            results.append(_read(found, of_models))
            if progress is not None:
                progress(f"coding as {codec}", number + 1, len(rates))
    return Codecs(results=results, skipped=skipped)


def _measure(
    codec: Codec, rates: CodecRates, images: SharedImages, rate: float, metrics: Sequence[Metric], folder: Path,
    key: dict[str, Any],
) -> None:  # fmt: skip
    device = key["protocol"]["device"]
    measured = score_codec(codec, images, rate, metrics, rates=rates, device=device, pictures=len(images.first))
    folder.parent.mkdir(parents=True, exist_ok=True)
    shown = [
        Shown(key=first.key, image=image, scores=scores)
        for first, image, scores in zip(images.first, measured.pictures, measured.picture_scores, strict=True)
    ]
    with writing_folder(folder) as temporary:
        content = {
            "codec": codec, "quality": measured.quality, "bits_per_pixel": measured.bits_per_pixel,
            "scores": measured.scores, "score_infos": {name: asdict(info) for name, info in measured.infos.items()},
            "note": measured.note,
        }  # fmt: skip
        write_json(temporary / "metrics.json", content)
        write_key(temporary, key, write_pictures(temporary, shown))


def _read(folder: Path, models: list[str]) -> CodecResult:
    found = read_json(folder / "metrics.json")
    codec, rate = str(found["codec"]), float(found["bits_per_pixel"])
    return CodecResult(
        name=f"{_TITLES[codec]} at {rate:.3g} bpp", codec=codec, quality=found["quality"], models=models,
        bits_per_pixel=rate, scores=found["scores"], infos=infos_of_json(found["score_infos"]),
        pictures=read_pictures(folder), note=found["note"],
    )  # fmt: skip
