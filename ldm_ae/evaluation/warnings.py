"""Faults of a model that its scores do not show: a wrong scale of the latents, and activations beyond float16."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ldm_ae.evaluation.activation_ranges import ActivationRanges
from ldm_ae.models import Autoencoder, ChannelStatistics, LatentSpec, fp32_fallbacks, unwrapped
from ldm_ae.models.scaling import describe_scaling, is_unscaled, measures_scale
from ldm_ae.models.wrappers.overflow import WIDE_PRECISION

SCALE_RANGE = 2.0
"""Scaled latents may have this standard deviation, or its inverse. Those of published models are between 0.7 and 1.4 on
photos of other sets than their scale was measured on."""


@dataclass(frozen=True, kw_only=True)
class ModelWarning:
    """A fault of a model, with the scores that it makes incomparable."""

    text: str
    """The fault in one or two sentences, with what to do."""
    scores: tuple[str, ...] = ()
    """Patterns of the keys of scores that are not comparable with those of other models, such as `psnr_noise_*`."""
    caution: str = ""
    """Reason why they are not, to follow `it is`."""


def warned(key: str, warnings: Iterable[ModelWarning]) -> str:
    """Return why a warning makes a score incomparable, to follow `it is`; empty where none does."""
    return next((w.caution for w in warnings if any(fnmatchcase(key, pattern) for pattern in w.scores)), "")


def model_warnings(
    model: Autoencoder, statistics: ChannelStatistics, activations: ActivationRanges
) -> list[ModelWarning]:
    """Return the warnings on an evaluated model.

    Args:
        model: The model as it ran, with the guard of `for_inference` in fp16.
        statistics: Statistics of its unscaled latents.
        activations: Range of its activations in float32.
    """
    overflow = overflow_warning(fp32_fallbacks(model), "the scores")
    if not overflow and not activations.safe_in_fp16:
        overflow = [ModelWarning(text=activations.line())]
    return [*scale_warning(unwrapped(model), statistics), *overflow]


def scale_warning(model: Autoencoder, statistics: ChannelStatistics) -> list[ModelWarning]:
    """Return a warning if the standard deviation of the scaled latents is not about 1; none for a model whose class
    stores no scale, and for constant latents."""
    if not measures_scale(model) or statistics.is_constant:
        return []
    std = scaled_std(model.latent_spec, statistics)
    if 1 / SCALE_RANGE <= std <= SCALE_RANGE:
        return []
    spec = model.latent_spec
    cause = "no scale was measured" if is_unscaled(spec) else f"{describe_scaling(spec)} does not fit them"
    return [
        ModelWarning(
            text=f"the scaled latents have a standard deviation of {std:.3g} where diffusion models expect 1: {cause}. "
            "Scores with noise are not comparable; ldm-ae export MODEL OUT --images IMAGES --scaling measure measures "
            "the scale",
            scores=("psnr_noise_*",), caution=f"of latents whose standard deviation is {std:.3g}, not 1",
        )
    ]  # fmt: skip


def scaled_std(spec: LatentSpec, statistics: ChannelStatistics) -> float:
    """Return the standard deviation over all elements of the scaled latents, given statistics of the unscaled ones.

    Places within a patch of packed latents are taken to have the statistics of their channel.
    """
    shape = (1, -1, 1, 1)
    size = (-1, -1, spec.patch_size, spec.patch_size)
    mean, std = (v.view(shape).expand(size) for v in (statistics.channel_mean, statistics.channel_std))
    scaled = spec.scale(mean)
    deviations = spec.scale(mean + std) - scaled
    return math.sqrt(float(deviations.square().mean() + scaled.var(correction=0)))


def overflow_warning(fallbacks: int, scores: str) -> list[ModelWarning]:
    """Return a warning if passes over batches overflowed in fp16; `scores` are those that the passes were for."""
    if not fallbacks:
        return []
    passes = "1 pass over a batch" if fallbacks == 1 else f"{fallbacks} passes over batches"
    return [
        ModelWarning(
            text=f"fp16 overflowed in {scores}: {passes} gave values that are not finite and were computed again in "
            f"{WIDE_PRECISION}, so that the results are not those of fp16; use bf16 or fp32"
        )
    ]
