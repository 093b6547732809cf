"""`scale`, `unscale`, `encode` and `decode` of every network class equal what its own pipeline in diffusers does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from ldm_ae.models import Autoencoder
from ldm_ae.models.adapters import AUTOENCODERS
from ldm_ae.models.adapters._video_networks import VIDEO_NETWORKS
from tests.models.examples import images, some_scale
from tests.models.pipelines import PipelineParts, decoded_by

Decode = Callable[[Any, Tensor], Tensor]
Encode = Callable[[Any, Tensor], Tensor]


def by(pipeline: str) -> Decode:
    return lambda net, scaled: decoded_by(getattr(diffusers, pipeline), net, scaled)


def flux2_decode(net: Any, scaled: Tensor) -> Tensor:
    pipeline = diffusers.Flux2Pipeline
    ids = pipeline._prepare_latent_ids(scaled)
    return decoded_by(pipeline, net, pipeline._pack_latents(scaled), latent_ids=ids)


def inpainting(pipeline: str) -> Encode:
    """The encoding of a pipeline's `_encode_vae_image`, which draws by the generator where there is a posterior."""

    def encode(net: Any, pixel_values: Tensor) -> Tensor:
        parts = PipelineParts(getattr(diffusers, pipeline), vae=net)
        return parts._encode_vae_image(image=pixel_values, generator=torch.Generator().manual_seed(5))

    return encode


DECODE: dict[str, Decode] = {
    "AutoencoderKL": by("StableDiffusionPipeline"),
    "AsymmetricAutoencoderKL": by("StableDiffusionPipeline"),
    "AutoencoderTiny": by("StableDiffusionPipeline"),
    "AutoencoderKLFlux2": flux2_decode,
    "AutoencoderDC": by("SanaPipeline"),
    "AutoencoderKLHunyuanImage": by("HunyuanImagePipeline"),
    # No pipeline of diffusers 0.42 has one: a diffusion model sees the latents of the class's own encode.
    "AutoencoderRAE": lambda net, scaled: net.decode(scaled).sample * 2 - 1,
    "VectorVAE": lambda net, scaled: net.decode(scaled / net.config.scaling_factor),
    "MLPVAE": lambda net, scaled: net.decode(scaled / net.config.scaling_factor),
}
ENCODE: dict[str, Encode] = {
    "AutoencoderKL": inpainting("StableDiffusionInpaintPipeline"),
    "AsymmetricAutoencoderKL": inpainting("StableDiffusionInpaintPipeline"),
    "AutoencoderTiny": inpainting("StableDiffusionInpaintPipeline"),
    "AutoencoderKLFlux2": inpainting("Flux2Pipeline"),
    "AutoencoderDC": lambda net, pixel_values: net.encode(pixel_values).latent * net.config.scaling_factor,
    "AutoencoderRAE": lambda net, pixel_values: net.encode((pixel_values + 1) / 2).latent,
}
ELSEWHERE = {"VQModel", "QuantizedAutoencoder", "HierarchicalQuantizedAutoencoder", *VIDEO_NETWORKS}
"""Pipelines of the first two quantize again before they decode: tests/interop/test_pipelines.py. The third has none.
Those of video are in test_video.py."""
OF_MODE = {"AutoencoderKLFlux2"}
"""The pipelines that encode to the posterior's mode."""


def scaled_example(name: str) -> Autoencoder:
    torch.manual_seed(3)
    model = AUTOENCODERS[name].example(name).eval()
    model.set_scaling(**some_scale(model))
    return model


def test_every_network_class_is_compared_with_a_pipeline() -> None:
    ours = {name for name in AUTOENCODERS if AUTOENCODERS[name].__module__.startswith("ldm_ae.")}
    assert {*DECODE} | ELSEWHERE == ours


@torch.no_grad()
@pytest.mark.parametrize("name", DECODE)
def test_the_pipeline_decodes_as_unscale_and_decode_do(name: str) -> None:
    model = scaled_example(name)
    scaled = torch.randn_like(model.scale(model.encode(images(model)).mode()))
    expected = DECODE[name](model.net, scaled)
    assert float(expected.std()) > 0.01
    torch.testing.assert_close(model.decode(model.unscale(scaled)), expected)


@torch.no_grad()
@pytest.mark.parametrize("name", ENCODE)
def test_the_pipeline_encodes_as_encode_and_scale_do(name: str) -> None:
    model = scaled_example(name)
    pixel_values = images(model)
    expected = ENCODE[name](model.net, pixel_values)
    posterior = model.encode(pixel_values)
    latents = posterior.mode() if name in OF_MODE else posterior.sample(torch.Generator().manual_seed(5))
    torch.testing.assert_close(model.scale(latents), expected)


@torch.no_grad()
@pytest.mark.parametrize("name", ["AutoencoderKLFlux2"])
def test_scale_stays_in_float32_when_the_weights_do_not(name: str) -> None:
    model = scaled_example(name)
    spec = model.latent_spec
    assert model.to(torch.bfloat16).dtype == torch.bfloat16
    assert model.latent_spec == spec
    assert model.float().latent_spec == spec
    model.net.bn.running_mean.add_(1.0)  # the cached vectors follow the buffers
    assert model.latent_spec.latents_mean != spec.latents_mean
