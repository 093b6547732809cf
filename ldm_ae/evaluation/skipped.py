"""Scores that cannot be computed for these images cost themselves alone, with their reason in the protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ldm_ae.core.dry_run import RefusedError, dry_run, smallest_side
from ldm_ae.evaluation.metrics.features import FeatureNetwork, frechet_score_name
from ldm_ae.evaluation.metrics.image_quality import PerceptualDistance
from ldm_ae.losses.perceptual.interface import PerceptualLoss, try_size


def usable(
    perceptual: PerceptualDistance | None, features: FeatureNetwork | None, shape: Sequence[int]
) -> tuple[PerceptualDistance | None, FeatureNetwork | None, dict[str, str]]:
    """The networks that take images of this shape (B, 3, H, W), and why the others do not, by their score's name."""
    skipped: dict[str, str] = {}
    if isinstance(perceptual, PerceptualLoss) and (why := _refusal(perceptual, try_size, shape)):
        skipped[perceptual.name] = why
        perceptual = None
    if isinstance(features, nn.Module) and (why := _refusal(features, _features, shape)):
        skipped[frechet_score_name(features)] = why
        features = None
    return perceptual, features, skipped


def _features(network: Any, images: Sequence[Tensor]) -> Tensor:
    found: Tensor = network(images[0])
    return found


def _refusal(network: nn.Module, call: Any, shape: Sequence[int]) -> str | None:
    try:
        dry_run(network, call, [(1, *shape[1:])])
    except RefusedError as error:
        side = smallest_side(network, call, (1, *shape[1:]))
        why = error if side is None else f"the smallest square ones are {side}x{side}"
        return f"the network cannot take images of {shape[-2]}x{shape[-1]}, height x width: {why}"
    return None
