"""Scores of an image codec at about the rate of a model, on the same images and by the same metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_ae.core.devices import pick_device
from ldm_ae.core.errors import UserError
from ldm_ae.evaluation.codecs import QUALITIES, Codec, as_rgb, code_images, coded_bits
from ldm_ae.evaluation.evaluate import ImageBatch
from ldm_ae.evaluation.metrics.interface import Metric, ScoreInfo, Setting
from ldm_ae.evaluation.metrics.storage import NUMBERS
from ldm_ae.evaluation.scoring import Scoring
from ldm_ae.images.uint8 import to_uint8

BITS_PER_NUMBER = 16
"""Bits of a latent number at the rate that codecs are matched to: fp16, which training on latents usually reads."""
_SAMPLE = 16


class MatchedRate(NamedTuple):
    """The rate of a model to which codecs are matched."""

    bits_per_pixel: float
    method: str
    """How the rate is counted, in words."""


def matched_rate(scores: Mapping[str, float]) -> MatchedRate | None:
    """Return the rate of a model from its scores.

    Of a discrete model it is the codes' at a fixed length. Of another it is that of latents in fp16: the rate that a
    latent store has, without the 64 bytes per image about the image. Its KL rate has no file of that size.

    Returns:
        The rate; None if the scores have neither `bits_per_pixel` (metric `rate`) nor `numbers_per_pixel` (`storage`).
    """
    if "bits_per_pixel" in scores:
        return MatchedRate(scores["bits_per_pixel"], "codes at a fixed length")
    if NUMBERS in scores:
        return MatchedRate(BITS_PER_NUMBER * scores[NUMBERS], f"latents in fp16, {BITS_PER_NUMBER} bits each")
    return None


@dataclass(frozen=True, kw_only=True)
class CodecScores:
    """Scores of a codec at one quality."""

    codec: Codec
    quality: int
    bits_per_pixel: float
    """Rate that was reached: mean over the images, of whole files."""
    scores: dict[str, float]
    infos: dict[str, ScoreInfo]
    """Display and explanation of each score, by its key."""
    pictures: list[Tensor]
    """The first reconstructions, (3, H, W) uint8."""
    picture_scores: list[dict[str, float]]
    """Scores of each of `pictures` alone, by key."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Reasons why requested scores are missing, by name."""
    note: str = ""
    """A line where no quality reaches the requested rate."""


class CodecRates:
    """Mean rate of a codec over a set of images, by its quality. Every rate is measured once.

    Args:
        codec: Name of the codec.
        loader: The images; it is iterated once for every quality that is measured.
    """

    def __init__(self, codec: Codec, loader: Iterable[ImageBatch]) -> None:
        self.codec: Codec = codec
        self._loader = loader
        self._means: dict[int, float] = {}
        self._means_of_sample: dict[int, float] = {}
        self._sample: list[Tensor] = []
        for batch in loader:
            self._sample += batch.pixel_values[: _SAMPLE - len(self._sample)].cpu().unbind()
            if len(self._sample) == _SAMPLE:
                break
        if not self._sample:
            raise UserError(f"no images to encode as {codec}")

    def mean(self, quality: int) -> float:
        """Return bits per pixel at a quality, mean over all images."""
        if quality not in self._means:
            self._means[quality] = _mean_rate((batch.pixel_values for batch in self._loader), self.codec, quality)
        return self._means[quality]

    def nearest(self, bits_per_pixel: float) -> int:
        """Return the quality whose mean rate is the nearest to `bits_per_pixel`.

        A bisection over the first images gives an estimate, which the ratio of their rate to that of all images
        corrects; from there the quality is changed until the rates of two neighbours enclose the requested one.
        """
        lowest, highest = QUALITIES[self.codec]
        quality = self._bisect(bits_per_pixel)
        ratio = self._mean_of_sample(quality) / self.mean(quality)
        quality = self._bisect(bits_per_pixel * ratio)
        while quality > lowest and self.mean(quality) > bits_per_pixel:
            quality -= 1
        while quality < highest and self.mean(quality + 1) <= bits_per_pixel:
            quality += 1
        around = range(quality, min(quality + 1, highest) + 1)
        return min(around, key=lambda found: abs(self.mean(found) - bits_per_pixel))

    def _bisect(self, bits_per_pixel: float) -> int:
        """Return the highest quality at which the first images' rate is at most this, or the lowest."""
        low, high = QUALITIES[self.codec]
        while low < high:
            middle = (low + high + 1) // 2
            if self._mean_of_sample(middle) <= bits_per_pixel:
                low = middle
            else:
                high = middle - 1
        return low

    def _mean_of_sample(self, quality: int) -> float:
        if quality not in self._means_of_sample:
            self._means_of_sample[quality] = _mean_rate((image[None] for image in self._sample), self.codec, quality)
        return self._means_of_sample[quality]


def score_codec(
    codec: Codec,
    loader: Iterable[ImageBatch],
    bits_per_pixel: float,
    metrics: Sequence[Metric],
    *,
    rates: CodecRates | None = None,
    device: str | torch.device = "auto",
    pictures: int = 6,
) -> CodecScores:
    """Score a codec at the quality whose rate on these images is the nearest to a given one.

    Args:
        codec: Name of the codec, which `missing_codec` does not refuse.
        loader: Batches of images in [-1, 1]; it is iterated several times.
        bits_per_pixel: Requested rate, mean over the images.
        metrics: As in `score_quality`.
        rates: Rates of this codec on this loader that are already known, to match several models; new ones are added.
        device: As in `score_quality`.
        pictures: As in `score_quality`.

    Returns:
        The scores, with the rate that was reached and a note if no quality reaches the requested one.

    Raises:
        UserError: There are no images, or Pillow cannot write the codec's files.
    """
    rates = rates or CodecRates(codec, loader)
    quality = rates.nearest(bits_per_pixel)
    found = score_quality(codec, loader, quality, metrics, device=device, pictures=pictures)
    return replace(found, note=_note(rates, quality, bits_per_pixel))


def score_quality(
    codec: Codec,
    loader: Iterable[ImageBatch],
    quality: int,
    metrics: Sequence[Metric],
    *,
    device: str | torch.device = "auto",
    pictures: int = 0,
) -> CodecScores:
    """Score a codec at one quality.

    Args:
        codec: Name of the codec.
        loader: Batches of images in [-1, 1].
        quality: As in `code_images`.
        metrics: Metrics, of which those are computed that compare images; their earlier images are discarded.
        device: Device of the metrics' networks; `auto` picks an accelerator if there is one.
        pictures: Number of reconstructions to keep.

    Raises:
        UserError: There are no images, the quality is invalid, or Pillow cannot write the codec's files.
    """
    device = pick_device(device) if isinstance(device, str) else device
    comparing = [metric for metric in metrics if metric.compares_images]
    scoring = Scoring(comparing, Setting(model=None, device=device))
    kept: list[Tensor] = []
    of_pictures: list[dict[str, float]] = []
    reached = _Mean()
    with torch.no_grad():
        for batch in loader:
            coded = code_images(batch.pixel_values, codec, quality)
            reached.add(coded.bits / batch.pixel_values[0, 0].numel())
            kept += to_uint8(coded.reconstructions[: pictures - len(kept)]).unbind()
            values = scoring.update(coded.reconstructions.to(device), as_rgb(batch.pixel_values).to(device))
            for row in range(min(len(coded.reconstructions), pictures - len(of_pictures))):
                of_pictures.append({key: rows[row] for key, rows in values.items()})
    if reached.count == 0:
        raise UserError(f"no images to encode as {codec}")
    scores = scoring.compute()
    return CodecScores(
        codec=codec, quality=quality, bits_per_pixel=reached.value, scores=scores,
        infos={key: scoring.infos[key] for key in scores}, pictures=kept, picture_scores=of_pictures,
        skipped=scoring.skipped,
    )  # fmt: skip


class _Mean:
    """A mean over values that arrive in batches."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, values: Tensor) -> None:
        self.total += float(values.sum())
        self.count += len(values)

    @property
    def value(self) -> float:
        return self.total / self.count


def _mean_rate(batches: Iterable[Tensor], codec: Codec, quality: int) -> float:
    mean = _Mean()
    for pixel_values in batches:
        mean.add(coded_bits(pixel_values, codec, quality) / pixel_values[0, 0].numel())
    if mean.count == 0:
        raise UserError("no images: the loader can be iterated once only")
    return mean.value


def _note(rates: CodecRates, quality: int, bits_per_pixel: float) -> str:
    """Return a line if even the lowest or highest quality is above or below the requested rate, else an empty one."""
    lowest, highest = QUALITIES[rates.codec]
    reached = rates.mean(quality)
    if quality == lowest and reached > bits_per_pixel:
        where = f"lowest quality {lowest}, above"
    elif quality == highest and reached < bits_per_pixel:
        where = f"highest quality {highest}, below"
    else:
        return ""
    return f"{rates.codec} has {reached:.3g} bits per pixel at its {where} the requested {bits_per_pixel:.3g}"
