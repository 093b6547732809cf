"""Autoencoders of video, for images: each equals its class in diffusers with one frame."""

from __future__ import annotations

import copy
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.models import AUTOENCODERS, Autoencoder, load_autoencoder, model_hash
from ldm_ae.models.adapters._video_examples import EXAMPLES
from ldm_ae.models.adapters._video_networks import VIDEO_NETWORKS
from ldm_ae.models.adapters.video import VideoAutoencoder
from tests.models.examples import SLOW_VIDEO, skip_if_missing
from tests.models.pipelines import latents_for_decode

CLAMPED = ("AutoencoderKLQwenImage", "AutoencoderKLQwenImage21", "AutoencoderKLWan")
"""Classes whose `decode` clamps."""


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow if name in SLOW_VIDEO else ())
                        for name in VIDEO_NETWORKS])  # fmt: skip
def name(request: pytest.FixtureRequest) -> str:
    skip_if_missing(request.param)
    return request.param


@pytest.fixture
def model(name: str) -> VideoAutoencoder:
    torch.manual_seed(0)
    return VideoAutoencoder.example(name).eval().requires_grad_(False)


def images(model: Autoencoder, count: int = 2) -> Tensor:
    factor = model.latent_spec.downsample_factor
    return torch.rand(count, 3, 2 * factor, 3 * factor) * 2 - 1


def close(found: Tensor, expected: Tensor, atol: float = 2e-6) -> bool:
    """The tolerance is that of other algorithms for other memory layouts."""
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=0, atol=atol)


def frames_of(model: VideoAutoencoder, x: Tensor) -> Tensor:
    """The input of the class itself."""
    name = type(model.net).__name__
    if name == "AutoencoderKLQwenImage21":
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)  # opaque RGBA
    if name == "Kandinsky6SRVAE":
        return x[:, :, None]  # its pipeline's methods convert
    return x if name in ("AutoencoderKLKVAE", "AutoencoderKLTemporalDecoder") else x[:, :, None]


def test_every_class_is_registered_with_an_example() -> None:
    assert VIDEO_NETWORKS.keys() == EXAMPLES.keys()
    assert all(AUTOENCODERS[name] is VideoAutoencoder for name in VIDEO_NETWORKS)


# -------------------------------------------------------------------------------------------- equality with diffusers


def reference_encode(model: VideoAutoencoder, x: Tensor) -> Tensor:
    """Moments of the class's own `encode`, or latents where it has none, with the axis of time."""
    net, name, frames = copy.deepcopy(model.net), type(model.net).__name__, frames_of(model, x)
    if name == "Kandinsky6SRVAE":
        from diffusers import Kandinsky6SRPipeline

        scaled = Kandinsky6SRPipeline.encode_video(SimpleNamespace(vae=net), frames)
        return scaled / net.config.scaling_factor
    if name == "AutoencoderVidTok":
        return net(frames, sample_posterior=False, encoder_mode=True)
    # HunyuanVideo15 cannot encode a batch.
    parts = frames.split(1) if name == "AutoencoderKLHunyuanVideo15" else [frames]
    posteriors = [net.encode(part).latent_dist for part in parts]
    if model.has_moments:
        return torch.cat([torch.cat([posterior.mean, posterior.logvar], dim=1) for posterior in posteriors])
    return torch.cat([posterior.mode() for posterior in posteriors])


def reference_decode(model: VideoAutoencoder, z: Tensor) -> Tensor:
    """Output of the class's own `decode`, with the axis of time."""
    net, name = copy.deepcopy(model.net), type(model.net).__name__
    if name == "AutoencoderKLTemporalDecoder":
        return net.decode(z, num_frames=1).sample
    if name == "AutoencoderKLKVAE":
        return net.decode(z).sample
    if name == "Kandinsky6SRVAE":
        from diffusers import Kandinsky6SRPipeline

        return Kandinsky6SRPipeline.decode_latents(SimpleNamespace(vae=net), z[:, :, None] * net.config.scaling_factor)
    if name == "AutoencoderVidTok":
        return net.decode(z[:, :, None])
    if name == "AutoencoderKLLTXVideo":
        assert net.config.timestep_conditioning
        return net.decode(z[:, :, None], torch.zeros(len(z))).sample
    parts = z[:, :, None].split(1) if name == "AutoencoderKLHunyuanVideo15" else [z[:, :, None]]
    return torch.cat([net.decode(part).sample for part in parts])


def test_encoding_equals_that_of_one_frame(name: str, model: VideoAutoencoder) -> None:
    x = images(model)
    posterior = model.encode(x)
    found = posterior.mode() if posterior.moments is None or name in ("Kandinsky6SRVAE", "AutoencoderVidTok") \
        else posterior.moments  # fmt: skip
    expected = reference_encode(model, x)
    if model._video.has_frames:
        assert expected.shape[2] == 1
        expected = expected[:, :, 0]
    assert close(found, expected)


def test_decoding_equals_that_of_one_frame_without_clamping(name: str, model: VideoAutoencoder) -> None:
    z = torch.randn(2, model.latent_spec.channels, 2, 3)
    with torch.no_grad():
        model.last_layer.mul_(20)  # beyond [-1, 1]
    found, expected = model.decode(z), reference_decode(model, z)
    assert found.abs().max() > 1
    if model._video.has_frames:
        assert expected.shape[2] == 1
        expected = expected[:, :, 0]
    if name in CLAMPED or name == "Kandinsky6SRVAE":
        found = found.clamp(-1, 1)
    assert torch.allclose(found, expected[:, :3], rtol=1e-5, atol=2e-6)


def test_wan_2_1_has_no_patches() -> None:
    config: dict[str, Any] = EXAMPLES["AutoencoderKLQwenImage"]
    model = VideoAutoencoder(network="AutoencoderKLWan", arguments=config).eval()
    x = images(model)
    assert model.latent_spec.downsample_factor == 2
    assert close(model.encode(x).mode(), model.net.encode(x[:, :, None]).latent_dist.mode()[:, :, 0])
    z = torch.randn(2, 4, 2, 3)
    assert close(model.decode(z).clamp(-1, 1), model.net.decode(z[:, :, None]).sample[:, :, 0])


# ------------------------------------------------------------------------------------------------ independence of calls


def test_calls_do_not_depend_on_earlier_calls_or_on_the_batch(model: VideoAutoencoder) -> None:
    x = images(model, 3)
    single = []
    for image in x.split(1):
        fresh = copy.deepcopy(model)
        latents = fresh.encode(image).mode()
        single.append((latents, fresh.decode(latents)))
    latents = [part[0] for part in single]
    for image, (expected, decoded) in zip(x.split(1), single, strict=True):  # one after the other
        assert close(model.encode(image).mode(), expected)
        assert close(model.decode(expected), decoded)
    assert close(model.encode(x).mode(), torch.cat(latents), atol=1e-5)
    assert close(model.decode(torch.cat(latents)), torch.cat([part[1] for part in single]), atol=1e-5)


def test_frames_that_the_network_kept_are_not_used(name: str, model: VideoAutoencoder) -> None:
    """As after a video that the same network encoded and decoded, and an error in its midst."""
    x = images(model)
    expected = model.encode(x).mode()
    decoded = model.decode(expected)
    for module in model.net.modules():
        for cache in ("prev_features", "causal_cache"):
            if hasattr(module, cache):
                setattr(module, cache, torch.full((1,), torch.nan))
        if hasattr(module, "is_first_chunk"):
            module.is_first_chunk = False
    for cache in ("_feat_map", "_enc_feat_map"):
        setattr(model.net, cache, [torch.full((1,), torch.nan)] * 99)
    assert close(model.encode(x).mode(), expected)
    assert close(model.decode(expected), decoded)
    kept = [module for module in model.net.modules() for cache in ("prev_features", "causal_cache")
            if getattr(module, cache, None) is not None]  # fmt: skip
    assert kept == []


@pytest.mark.parametrize("name", ["AutoencoderKLMagvit", "AutoencoderKLQwenImage", "AutoencoderVidTok"])
def test_threads_may_share_a_model(model: VideoAutoencoder) -> None:
    batches = [images(model, count) for count in (1, 2, 1, 3, 2, 1)]
    expected = [model.decode(model.encode(batch).mode()) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: model.decode(model.encode(batch).mode()), batches))
    assert all(close(one, other) for one, other in zip(found, expected, strict=True))


# --------------------------------------------------------------------------------------------- the scale of pipelines

VECTORS = {"latents_mean": (0.5, -0.5, 0.25, 0.125), "latents_std": (2.0, 1.5, 1.25, 0.5)}


def unscaled_by_the_pipeline(model: VideoAutoencoder, scaled: Tensor) -> Tensor:
    """`scaled` (B, C, h, w) unscaled by the code of the class's pipeline."""
    net, name, video = model.net, type(model.net).__name__, scaled[:, :, None]
    if name == "AutoencoderKLCogVideoX":
        decoder = SimpleNamespace(decode=lambda latents: SimpleNamespace(sample=latents))
        pipeline = SimpleNamespace(vae=decoder, vae_scaling_factor_image=net.config.scaling_factor)
        return diffusers.CogVideoXPipeline.decode_latents(pipeline, video.transpose(1, 2))[:, :, 0]
    if name == "AutoencoderKLCosmos":
        scheduler = SimpleNamespace(config=SimpleNamespace(sigma_data=1.0))
        return latents_for_decode(diffusers.CosmosTextToWorldPipeline, net, video, scheduler=scheduler)[:, :, 0]
    if name == "AutoencoderKLHunyuanImageRefiner":
        pipeline = diffusers.HunyuanImageRefinerPipeline
        stacked = pipeline._reorder_image_tokens(video)
        return latents_for_decode(pipeline, net, stacked)[:, :, 0]
    if name == "AutoencoderKLTemporalDecoder":
        decoded = []

        def decode(latents: Tensor, **_: Any) -> SimpleNamespace:
            decoded.append(latents)
            return SimpleNamespace(sample=latents)

        vae = SimpleNamespace(config=net.config, forward=net.forward, decode=decode)
        diffusers.StableVideoDiffusionPipeline.decode_latents(SimpleNamespace(vae=vae), scaled[:, None], 1)
        return decoded[0]
    if name in ("AutoencoderKLLTXVideo", "AutoencoderKLLTX2Video"):
        pipeline = diffusers.LTXPipeline if name == "AutoencoderKLLTXVideo" else diffusers.LTX2Pipeline
        vectors = (net.latents_mean, net.latents_std, net.config.scaling_factor)
        assert torch.equal(pipeline._normalize_latents(pipeline._denormalize_latents(video, *vectors), *vectors).round(
            decimals=4), video.round(decimals=4))  # fmt: skip
        return pipeline._denormalize_latents(video, *vectors)[:, :, 0]
    if name == "Kandinsky6SRVAE":
        vae = SimpleNamespace(config=net.config, dtype=torch.float32, decode=lambda latents, **_: (latents * 0.1,))
        decoded = diffusers.Kandinsky6SRPipeline.decode_latents(SimpleNamespace(vae=vae), video)
        return (((decoded + 1) * (127.5 / 128) - 1) * 10)[:, :, 0]  # the pipeline also converts pixels, and clamps
    if name in ("AutoencoderKLQwenImage", "AutoencoderKLQwenImage21"):
        pipeline = diffusers.QwenImagePipeline if name == "AutoencoderKLQwenImage" else diffusers.QwenImage21Pipeline
        names = {"height": scaled.shape[-2], "width": scaled.shape[-1], "vae_scale_factor": 1,
                 "_unpack_latents": lambda latents, *_: latents}  # fmt: skip
        return latents_for_decode(pipeline, net, video, **names)[:, :, 0]
    if name == "AutoencoderKLMochi":
        code = diffusers.MochiPipeline
        padded = torch.cat([video, video, video], dim=1)  # the pipeline expects 12 channels
        net = SimpleNamespace(config=SimpleNamespace(
            latents_mean=net.config.latents_mean * 3, latents_std=net.config.latents_std * 3,
            scaling_factor=net.config.scaling_factor))  # fmt: skip
        return latents_for_decode(code, net, padded)[:, :4, 0]
    pipeline = {
        "AutoencoderKLHunyuanVideo": "HunyuanVideoPipeline",
        "AutoencoderKLHunyuanVideo15": "HunyuanVideo15Pipeline",
        "AutoencoderKLMagvit": "EasyAnimatePipeline",
        "AutoencoderKLWan": "WanPipeline",
    }[name]
    names = {"get_module_execution_device": lambda module: torch.device("cpu")}
    try:
        cls = getattr(diffusers, pipeline)
    except RuntimeError as error:  # diffusers' own, around the import of a part that older transformers lack
        pytest.skip(str(error))
    return latents_for_decode(cls, net, video, **names)[:, :, 0]


def test_scale_equals_that_of_the_pipeline(name: str, model: VideoAutoencoder) -> None:
    if not model.scale_keys:
        pytest.skip("diffusers has no pipeline of this class")
    scale = {"scaling_factor": 0.7} | VECTORS
    model.set_scaling(**({"scaling_factor": 1.0} | {key: scale[key] for key in model.scale_keys}))
    latents = torch.randn(2, 4, 2, 3)
    scaled = model.scale(latents)
    assert not torch.allclose(scaled, latents, atol=0.1)
    assert torch.allclose(unscaled_by_the_pipeline(model, scaled), latents, atol=1e-5)
    assert torch.allclose(model.unscale(scaled), latents, atol=1e-6)


def test_scale_of_the_published_configuration_equals_that_of_the_pipeline(name: str, model: VideoAutoencoder) -> None:
    """In the form in which the folder of the class has it."""
    if not model.scale_keys:
        pytest.skip("diffusers has no pipeline of this class")
    scaled = torch.randn(2, 4, 2, 3)
    assert torch.allclose(unscaled_by_the_pipeline(model, scaled), model.unscale(scaled), atol=1e-5)


def test_without_vectors_pipelines_find_some_that_change_nothing() -> None:
    model = VideoAutoencoder.example("AutoencoderKLWan")
    model.set_scaling(scaling_factor=1.0)
    assert model.net.config.latents_mean == [0.0] * 4
    assert model.net.config.latents_std == [1.0] * 4
    latents = torch.randn(1, 4, 2, 2)
    assert torch.equal(model.scale(latents), latents)


def test_vectors_of_ltx_are_saved_as_buffers_outside_the_hash(tmp_path: Path) -> None:
    model = VideoAutoencoder.example("AutoencoderKLLTXVideo")
    before = model_hash(model)
    model.set_scaling(scaling_factor=0.5, **VECTORS)
    assert model_hash(model) == before
    model.save_pretrained(tmp_path)
    net = diffusers.AutoencoderKLLTXVideo.from_pretrained(tmp_path)
    assert net.latents_mean.tolist() == list(VECTORS["latents_mean"])
    assert net.latents_std.tolist() == list(VECTORS["latents_std"])
    spec = load_autoencoder(tmp_path).latent_spec
    assert (spec.scaling_factor, spec.latents_mean, spec.latents_std) == (0.5, *VECTORS.values())


# ---------------------------------------------------------------------------------------------------- pixels, refusals


def test_qwen_image_2_1_encodes_opaque_images_and_drops_alpha() -> None:
    skip_if_missing("AutoencoderKLQwenImage21")
    model = VideoAutoencoder.example("AutoencoderKLQwenImage21").eval()
    assert model.pixel_spec.channels == 3
    x, z = images(model), torch.randn(2, 4, 2, 3)
    decoded = model.net.decode(z[:, :, None]).sample[:, :, 0]
    assert decoded.shape[1] == 4
    assert close(model.decode(z).clamp(-1, 1), decoded[:, :3])
    transparent = torch.cat([x, -torch.ones_like(x[:, :1])], dim=1)[:, :, None]
    assert not close(model.encode(x).mode(), model.net.encode(transparent).latent_dist.mode()[:, :, 0])


@pytest.mark.parametrize(
    ("network", "changes", "message"),
    [
        ("AutoencoderKLWan", {"in_channels": 16}, "the encoder takes images of 4 channels, and the decoder gives 3"),
        ("AutoencoderKLWan", {"in_channels": 4, "out_channels": 4, "patch_size": None}, "images are unknown"),
        ("AutoencoderKLLTXVideo", {"decoder_inject_noise": (True, False, False)}, "adds random noise"),
        ("AutoencoderKLLTX2Video", {"decoder_inject_noise": True}, "adds random noise"),
        ("AutoencoderVidTok", {"regularizer": "fsq", "double_z": False, "codebook_size": 4096}, "are codes"),
        ("AutoencoderVidTok", {"is_causal": False}, "not causal"),
        ("AutoencoderKLWan", {"widths": 3}, "cannot be built with these arguments: .*widths"),
        ("UNet2DModel", {}, "network: expected one of AutoencoderKLCogVideoX"),
    ],
)
def test_configurations_without_images_are_refused(
    network: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = EXAMPLES.get(network, {}) | changes
    with pytest.raises(UserError, match=message):
        VideoAutoencoder(network=network, arguments=config)
    if "built" in message or "expected" in message:
        return
    net = getattr(diffusers, network)(**config)
    net.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        load_autoencoder(tmp_path)
    with pytest.raises(UserError, match=message):
        VideoAutoencoder.around(net)


def test_class_that_the_installed_diffusers_lacks_names_the_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLQwenImage21"}))
    monkeypatch.setattr(diffusers, "AutoencoderKLQwenImage21", None, raising=False)
    with pytest.raises(UserError, match=r"QwenImage21 needs diffusers 0\.41 or newer, and .* is installed"):
        load_autoencoder(tmp_path)
