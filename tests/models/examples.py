"""Inputs for a small model of any network class."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from ldm_ae.models import Autoencoder
from ldm_ae.models.adapters._video_networks import VIDEO_NETWORKS

FAST_VIDEO = ("AutoencoderKLLTXVideo", "AutoencoderKLMagvit", "AutoencoderKLQwenImage", "AutoencoderKLWan")
"""One class of video of each kind. The other classes take as long together as all other tests of networks."""
SLOW_VIDEO = [name for name in VIDEO_NETWORKS if name not in FAST_VIDEO]


def skip_if_missing(name: str) -> None:
    """Skip a test of a network class that the installed diffusers does not have, or cannot read."""
    if name == "AutoencoderRAE" and version("transformers").startswith("4."):
        pytest.skip("a saved AutoencoderRAE needs transformers 5")
    if name in VIDEO_NETWORKS and not hasattr(diffusers, name):
        pytest.skip(f"{name} needs diffusers {VIDEO_NETWORKS[name].needs}")


def images(model: Autoencoder, count: int = 2) -> Tensor:
    """(count, channels, 2 f, 4 f) in the model's range, or of the model's only size."""
    spec = model.spec
    low, high = spec.pixels.range
    factor, side = spec.latents.downsample_factor, spec.latents.image_size
    size = (2 * factor, 4 * factor) if side is None else (side, side)
    return torch.rand(count, spec.pixels.channels, *size) * (high - low) + low


def latent_size(model: Autoencoder) -> tuple[int, int]:
    """(h, w) of the latents of `images`."""
    return model.latent_spec.latent_size(*images(model).shape[-2:])


def noise_of(model: Autoencoder) -> Tensor:
    """Standard normal noise of the shape of two latents."""
    return torch.randn(2, model.latent_spec.channels, *latent_size(model))


def some_scale(model: Autoencoder) -> dict[str, Any]:
    """A scale that the class can store: a factor, or vectors that differ between channels, or none."""
    channels = model.latent_spec.scaled_channels
    places = range(1, channels + 1)
    values = {
        "scaling_factor": 0.5,
        "latents_mean": tuple(0.1 * place for place in places),
        "latents_std": tuple(0.5 + place / channels for place in places),
    }
    keys = ("scaling_factor",) if "scaling_factor" in model.scale_keys else ("latents_mean", "latents_std")
    return {"scaling_factor": 1.0} | {key: values[key] for key in keys if key in model.scale_keys}
