"""Measurement of the scale of a model's latents, and the decision whether it replaces the model's scale.

An encoder with a scale keeps it: diffusion models were trained with it, and further training of the decoder does not
change latents. An encoder that was trained since, or that was never measured, is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from ldm_ae.core.errors import UserError
from ldm_ae.data import Batch, seeded_noise
from ldm_ae.models import Autoencoder, ChannelStatistics, LatentSpec
from ldm_ae.models.scaling import (
    check_form,
    check_storable,
    describe_scaling,
    is_unscaled,
    measured_scaling,
    measures_scale,
    scale_is_known,
    set_scaling_of,
)


@torch.inference_mode()
def measure_scaling(
    model: Autoencoder, loader: Iterable[Batch], *, progress: Callable[[int], None] | None = None
) -> ChannelStatistics:
    """Return per-channel statistics of one posterior sample per image, with each sample's own noise.

    Latents are packed as the model's pipelines pack them (`LatentSpec.patch_size`).

    Args:
        model: A model in eval mode, on the device to run on.
        loader: Batches of images, usually an `EvaluationLoader`.
        progress: Called with the number of images done after every batch.
    """
    spec = model.latent_spec
    statistics = ChannelStatistics(spec.scaled_channels)
    device = model.device
    done = 0
    for batch in loader:
        posterior = model.encode(batch.pixel_values.to(device))
        shape = posterior.mode().shape[1:]
        latents = posterior.sample(noise=seeded_noise(batch.seeds, tuple(shape)).to(device))
        statistics.update(spec.pack(latents))
        done += len(batch.keys)
        if progress is not None:
            progress(done)
    return statistics


def settle_scaling(
    model: Autoencoder, loader: Iterable[Batch] | None, *, known: LatentSpec | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[str, bool]:  # fmt: skip
    """Give a trained model the scale of its latents: keep it where the encoder is unchanged, else measure it.

    Args:
        model: The model to export; it is put in eval mode, and its configuration is changed.
        loader: Images to measure on; None if there are none.
        known: The specification with the scale of the changed encoder, where training determines it.
        progress: See `measure_scaling`.

    Returns:
        A description of the action, and whether the model now has a scale of its own.
    """
    model.eval()
    before = model.latent_spec
    if known is not None:
        set_scaling_of(model, known)
        return f"{describe_scaling(known)}, which the regularizer determines", True
    if not measures_scale(model):
        return f"{type(model.net).__name__} stores no scale of its own, and none is measured", True
    if scale_is_known(model):
        return f"the encoder is unchanged and keeps its {describe_scaling(before)}", True
    old = (
        "no scale"
        if is_unscaled(before)
        else f"the {describe_scaling(before)} of the encoder that training started from"
    )
    advice = "`ldm-ae export RUN OUT --images IMAGES` measures it"
    if loader is None:
        return f"without validation images the model has {old}; {advice}", False
    try:
        after = measured_scaling(before, measure_scaling(model, loader, progress=progress))
    except UserError as error:
        return f"the model keeps {old}: {error}", False
    set_scaling_of(model, after)
    return f"{describe_scaling(after)}, measured on the validation images in place of {old}", True


class ScalingPlan(NamedTuple):
    """The action of `export` on a model's scale."""

    measure: bool
    """Whether a measured scale replaces the model's."""
    notes: list[str]
    """Messages about the scale that is kept."""


def plan_scaling(model: Autoencoder, choice: str, *, per_channel: bool | None, images: bool) -> ScalingPlan:
    """Evaluate the options of `export` before anything is computed.

    Args:
        model: The model to export.
        choice: `keep`, `measure`, or `auto`: measure where the model has no scale of its own.
        per_channel: The requested form, or None; a requested form is measured.
        images: Whether there are images to measure on.

    Raises:
        UserError: options that exclude each other, no images for a measurement, or vectors for a model whose pipelines
            read a shift.
    """
    form = None if per_channel is None else "--per-channel" if per_channel else "--no-per-channel"
    if choice == "keep" and form is not None:
        raise UserError(f"--scaling keep excludes {form}, which is measured; remove one of them")
    asked = choice == "measure" or form is not None
    if asked and not images:
        raise UserError(f"{form or '--scaling measure'} needs --images to measure on")
    spec = model.latent_spec
    check_form(spec, per_channel)
    if asked:
        check_storable(model, per_channel)
    known = scale_is_known(model)
    measure = asked or (choice == "auto" and images and not known)
    if known or measure:
        return ScalingPlan(measure, [])
    if is_unscaled(spec):
        return ScalingPlan(False, ["scaling_factor is 1 and was not measured; --images IMAGES measures it"])
    words = f"the encoder was trained further since its {describe_scaling(spec)} was measured"
    return ScalingPlan(False, [f"{words}; --images IMAGES measures it"])


def scaling_line(
    before: LatentSpec, statistics: ChannelStatistics | None, images: str, *, per_channel: bool | None
) -> str:
    """Return the line of `export --images` about the scale: the change, or without `statistics` the kept scale."""
    if statistics is None:
        return f"{describe_scaling(before)} is kept; --scaling measure measures it on {images}"
    after = measured_scaling(before, statistics, per_channel=per_channel)
    return f"{describe_scaling(before)} -> {describe_scaling(after)}, measured on {images}"
