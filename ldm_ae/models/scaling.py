"""The scale in a model's configuration: its forms, and whether it belongs to the model's encoder.

The reference is how the pipelines of diffusers 0.42 convert scaled latents s before they decode:

| pipelines | latents |
|---|---|
| Stable Diffusion, DiT, Kolors, LDM | s / scaling_factor |
| SDXL without vectors | s / scaling_factor |
| SDXL with `latents_mean` and `latents_std` | s * latents_std / scaling_factor + latents_mean |
| GLM-Image | s * latents_std + latents_mean |
| SD3, FLUX, Z-Image, Lumina 2 | s / scaling_factor + shift_factor, which fails where the shift is null |
| Sana, HunyuanImage | s / scaling_factor |
| FLUX.2 | unpack(s * sqrt(bn.running_var + batch_norm_eps) + bn.running_mean) |

Without vectors and with a shift of 0 all but the third and fourth agree with `LatentSpec`. With vectors SDXL does, and
with a factor of 1 all that read vectors; with a nonzero shift those of the fifth row do. FLUX.2's vectors are buffers
of its network. A class states in `Autoencoder.scale_keys` which parts of a scale it can store; AutoencoderRAE, whose
network normalizes its latents itself, stores none.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ldm_ae.core.errors import UserError
from ldm_ae.models.spec import LatentSpec
from ldm_ae.models.statistics import ChannelStatistics

if TYPE_CHECKING:
    from ldm_ae.models.interface import Autoencoder

NO_SCALE = {"scaling_factor": 1.0, "shift_factor": 0.0, "latents_mean": None, "latents_std": None}
"""The keys of a scale, in a configuration and in `LatentSpec`, with the values that leave latents unchanged."""
SCALE = tuple(NO_SCALE)
_NEARLY_ONE = 1e-3
_MOST_SHOWN, _SOME = 64, 4
SCALED_ENCODER = "_scaled_encoder"
"""Configuration key for the sha256 of the encoder's weights that the scale was measured for. Keys with an underscore
are not arguments of the network; diffusers ignores them."""


def factor_beside_vectors(scaling_factor: float, mean: Sequence[float] | None, std: Sequence[float] | None) -> float:
    """Return the factor that multiplies latents whitened by these vectors, given the values of a configuration.

    Earlier versions wrote 1 / (standard deviation over all channels) beside vectors where only the vectors applied;
    exactly that number is read as 1.
    """
    numbers = [scaling_factor, *(mean or ()), *(std or ())]
    if not mean or not std or not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
        return scaling_factor  # LatentSpec rejects invalid values
    center = sum(mean) / len(mean)
    pooled = math.sqrt(sum(s * s + (m - center) ** 2 for m, s in zip(mean, std, strict=False)) / len(std))
    return 1.0 if math.isclose(scaling_factor * pooled, 1.0, rel_tol=1e-6) else scaling_factor


def settle_factor(net: Any) -> None:
    """Write the intended factor into a configuration that was read, so that models saved from it have the factor too:
    pipelines use the number as it stands."""
    config = net.config
    written = config.get("scaling_factor")
    meant = factor_beside_vectors(written, config.get("latents_mean"), config.get("latents_std"))
    if meant != written:
        net.register_to_config(scaling_factor=meant)


def measured_scaling(spec: LatentSpec, statistics: ChannelStatistics, *, per_channel: bool | None = None) -> LatentSpec:
    """Return `spec` with a measured scale, in the form that the model's scale has.

    Vectors are replaced beside the same factor; a nonzero shift becomes the mean over all channels, for the pipelines
    that add one; otherwise only the factor is measured, and the shift is 0.

    Args:
        spec: The model's specification.
        statistics: Statistics of the model's latents, packed by `spec.pack`.
        per_channel: True for vectors, beside a factor of 1 if they are new; False for none; None for the model's form.

    Raises:
        UserError: The latents, or with vectors one of their channels, are constant or not finite, vectors are
            requested beside a shift, or the statistics are of another number of channels.
    """
    if (channels := len(statistics.channel_mean)) != spec.scaled_channels:
        packed = "" if spec.patch_size == 1 else " of packed latents, as latent_spec.pack returns them"
        raise UserError(f"the statistics are of {channels} channels; expected {spec.scaled_channels}{packed}")
    if statistics.count == 0:
        raise UserError("the scale cannot be measured: there are no latents; give more images")
    if not math.isfinite(statistics.pooled_std):
        raise UserError("the scale cannot be measured: the latents are not finite")
    if statistics.scaling_factor is None:
        raise UserError(describe_constant(statistics))
    check_form(spec, per_channel)
    has_vectors = spec.latents_std is not None and spec.latents_mean is not None
    if has_vectors if per_channel is None else per_channel:
        if constant := statistics.constant_channels:
            remedy = "remove --per-channel" if per_channel else "give more images"
            raise UserError(
                f"channel {constant[0]} of the latents is constant, and latents_std cannot divide by 0; {remedy}"
            )
        return replace(
            spec,
            scaling_factor=spec.scaling_factor if has_vectors else 1.0,
            shift_factor=0.0,
            latents_mean=tuple(statistics.channel_mean.tolist()),
            latents_std=tuple(statistics.channel_std.tolist()),
        )
    return replace(
        spec,
        scaling_factor=statistics.scaling_factor,
        shift_factor=statistics.pooled_mean if spec.shift_factor else 0.0,
        latents_mean=None,
        latents_std=None,
    )


def describe_constant(statistics: ChannelStatistics) -> str:
    """Return a message about constant latents."""
    return (
        f"the latents are constant (standard deviation {statistics.pooled_std:.3g} around "
        f"{statistics.pooled_mean:.3g}), so that no scale can be measured; every image has the same latents: "
        "the codebook or the latents have collapsed, or the encoder is not trained"
    )


def measures_scale(model: Autoencoder) -> bool:
    """Return whether the model's class can store a scale that is measured."""
    return bool({"scaling_factor", "latents_std"} & {*model.scale_keys})


def check_storable(model: Autoencoder, per_channel: bool | None) -> None:
    """Raise UserError where the model's class cannot store a measured scale of this form."""
    name, keys = type(model.net).__name__, model.scale_keys
    if not measures_scale(model):
        raise UserError(
            f"{name} stores no scale of its own: diffusion models see its latents as they are; remove --scaling measure"
        )
    if per_channel and "latents_std" not in keys:
        raise UserError(f"{name} cannot store latents_mean and latents_std; remove --per-channel")
    if per_channel is False and "scaling_factor" not in keys:
        raise UserError(f"{name} stores latents_mean and latents_std alone; remove --no-per-channel")


def check_form(spec: LatentSpec, per_channel: bool | None) -> None:
    """Raise UserError where vectors are requested and the model's pipelines read a shift."""
    if per_channel and spec.shift_factor and spec.latents_std is None:
        raise UserError(
            f"the model has shift_factor {spec.shift_factor:.5g}: pipelines that read it (SD3, FLUX) ignore "
            "latents_mean and latents_std and would decode wrongly; remove --per-channel"
        )


def set_scaling_of(model: Autoencoder, spec: LatentSpec) -> None:
    """Write the scale of `spec` into the model's configuration."""
    model.set_scaling(
        scaling_factor=spec.scaling_factor, shift_factor=spec.shift_factor, latents_mean=spec.latents_mean,
        latents_std=spec.latents_std,
    )  # fmt: skip


def describe_scaling(spec: LatentSpec) -> str:
    """Return the scale in words, such as `scaling_factor 0.36110, shift_factor 0.11590`."""
    words = f"scaling_factor {spec.scaling_factor:.5f}"
    if spec.latents_mean is not None and spec.latents_std is not None:
        mean, std = (_listed(vector) for vector in (spec.latents_mean, spec.latents_std))
        return f"{words}, latents_mean [{mean}], latents_std [{std}]"
    return f"{words}, shift_factor {spec.shift_factor:.5f}" if spec.shift_factor else words


def _listed(vector: Sequence[float]) -> str:
    shown = [f"{value:.4g}" for value in vector]
    return ", ".join(shown if len(shown) <= _MOST_SHOWN else [*shown[:_SOME], f"... ({len(shown)} channels)"])


def is_unscaled(spec: LatentSpec) -> bool:
    """Return whether no scale was measured: a factor of 1 and nothing else.

    Vectors of a network that always has some are those of a new batch normalization: mean 0, and sqrt(1 + eps).
    """
    initial = not any(spec.latents_mean or ()) and all(abs(std - 1.0) < _NEARLY_ONE for std in spec.latents_std or ())
    return spec.scaling_factor == 1.0 and not spec.shift_factor and initial


def encoder_sha256(model: Autoencoder) -> str:
    """Return the sha256 in hex of the float32 values of every parameter that affects latents: all but the decoder's."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.encoder_parameters().items()):
        values = parameter.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def mark_scaled_encoder(model: Autoencoder) -> None:
    """Record in the configuration that its scale belongs to the current encoder."""
    net: Any = model.net
    net.register_to_config(**{SCALED_ENCODER: encoder_sha256(model)})


def remember_scaled_encoder(model: Autoencoder) -> None:
    """Call `mark_scaled_encoder` where no encoder is recorded yet, before an encoder with a scale is trained."""
    net: Any = model.net
    if net.config.get(SCALED_ENCODER) is None and not is_unscaled(model.latent_spec):
        mark_scaled_encoder(model)


def describe_state(model: Autoencoder) -> str:
    """Return the origin of the scale in a few words: `measured` also covers the scale of a published model."""
    if not measures_scale(model):
        return "none: diffusion models see the latents as they are"
    if is_unscaled(model.latent_spec):
        return "not measured"
    return "measured" if scale_is_known(model) else "measured before the encoder was trained further"


def scale_is_known(model: Autoencoder) -> bool:
    """Return whether the configuration has a scale that was measured for the current encoder, or needs none.

    A scale without a record of its encoder is assumed to be that of a published model.
    """
    if not measures_scale(model):
        return True
    if is_unscaled(model.latent_spec):
        return False
    net: Any = model.net
    marked = net.config.get(SCALED_ENCODER)
    return marked is None or marked == encoder_sha256(model)
