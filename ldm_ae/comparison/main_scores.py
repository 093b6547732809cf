"""The few scores that a summary of a comparison shows."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from ldm_ae.comparison.result import ModelResult, score_infos
from ldm_ae.evaluation.metrics.interface import ScoreInfo

MAIN: tuple[tuple[str, ...], ...] = (
    ("psnr",),
    ("ssim",),
    ("lpips_*", "stlpips_*"),
    ("rfid", "frechet_efficientnet_*"),
    ("frechet_dinov2_*",),
    ("text_*",),
    ("numbers_per_pixel",),
    ("bits_per_pixel", "kl_bits_per_pixel"),
    ("equivariance_error_scale",),
    ("latent_spectrum_slope",),
    ("ifid", "interpolation_frechet_*"),
    ("flow_loss",),
    ("sample_fid", "sample_frechet_*"),
    ("decode_images_per_second",),
    ("decoder_parameters",),
)
"""Patterns of the keys of the main scores: of each entry, the first pattern that a score matches, and its first
match."""


def main_scores(models: Sequence[ModelResult]) -> dict[str, ScoreInfo]:
    """Return the main scores among those of any model, in the order of `MAIN`; without one of these, all scores."""
    infos = score_infos(models)
    found: dict[str, ScoreInfo] = {}
    for patterns in MAIN:
        key = next((key for pattern in patterns for key in infos if fnmatchcase(key, pattern)), None)
        if key is not None:
            found[key] = infos[key]
    return found or infos
