"""Every form of scale that is written, decoded by diffusers' pipelines in their own code.

The denoising networks are tiny and untrained: what counts is what a pipeline makes of the latents that it ends with.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor

import ldm_ae
from ldm_ae.core.errors import UserError
from ldm_ae.interop import export_diffusers
from ldm_ae.models import (
    Autoencoder,
    ChannelStatistics,
    KLAutoencoder,
    LatentSpec,
    VQAutoencoder,
    load_autoencoder,
    model_hash,
)
from ldm_ae.models.scaling import factor_beside_vectors, measured_scaling, set_scaling_of
from ldm_ae.quantizers import FSQ

WIDTH, POOLED, TOKENS, SIDE = 32, 16, 4, 8
Run = Callable[[AutoencoderKL, str], Any]
CHANNELS = torch.tensor([-3.0, 0.5, 1.0, 4.0]).view(1, 4, 1, 1)


def embeddings() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "prompt_embeds": torch.randn(1, TOKENS, WIDTH, generator=generator),
        "pooled_prompt_embeds": torch.randn(1, POOLED, generator=generator),
    }


def start() -> Tensor:
    return torch.randn(1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(2))


def unet(**more: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SIDE, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=WIDTH,
        attention_head_dim=4, norm_num_groups=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **more,
    ).eval()  # fmt: skip


def run(pipeline: Any, vae: AutoencoderKL, output: str, **inputs: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    pixels = SIDE * 2 ** (len(vae.config.block_out_channels) - 1)
    return pipeline(num_inference_steps=1, height=pixels, width=pixels, output_type=output, **inputs).images


def stable_diffusion(vae: AutoencoderKL, output: str) -> Any:
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=None, tokenizer=None, unet=unet(),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    embeds = embeddings()["prompt_embeds"]
    return run(pipeline, vae, output, prompt_embeds=embeds, guidance_scale=1.0, latents=start())


def xl_unet() -> UNet2DConditionModel:
    return unet(
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=POOLED + 48
    )


def sdxl(vae: AutoencoderKL, output: str) -> Any:
    pipeline = StableDiffusionXLPipeline(
        vae=vae, text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None, unet=xl_unet(),
        scheduler=DDIMScheduler(clip_sample=False), add_watermarker=False,
    )  # fmt: skip
    return run(pipeline, vae, output, **embeddings(), guidance_scale=1.0, latents=start())


def sd3(vae: AutoencoderKL, output: str) -> Any:
    transformer = SD3Transformer2DModel(
        sample_size=SIDE, patch_size=1, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=WIDTH, caption_projection_dim=32, pooled_projection_dim=POOLED,
        pos_embed_max_size=SIDE,
    )  # fmt: skip
    nothing: dict[str, Any] = dict.fromkeys(
        ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    )
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer.eval(), scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, **nothing
    )
    return run(pipeline, vae, output, **embeddings(), guidance_scale=0.0, latents=start())


def flux(vae: AutoencoderKL, output: str) -> Any:
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, pooled_projection_dim=POOLED, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=None, tokenizer=None, text_encoder_2=None,
        tokenizer_2=None, transformer=transformer.eval(),
    )  # fmt: skip
    packed = pipeline._pack_latents(start(), 1, 4, SIDE, SIDE)
    found = run(pipeline, vae, output, **embeddings(), guidance_scale=0.0, latents=packed)
    if output != "latent":
        return found
    pixels = SIDE * pipeline.vae_scale_factor
    return pipeline._unpack_latents(found, pixels, pixels, pipeline.vae_scale_factor)


PLAIN: dict[str, Run] = {"sd": stable_diffusion}  # DiT and LDM: test_pipelines.py
WITH_VECTORS: dict[str, Run] = {"sdxl": sdxl}
WITH_SHIFT: dict[str, Run] = {"sd3": sd3, "flux": flux}
ALL = PLAIN | WITH_VECTORS | WITH_SHIFT


def assert_decodes_as_the_specification_says(model: Autoencoder, folder: Path, pipeline: Run) -> None:
    def runs(output: str) -> Any:
        torch.manual_seed(3)  # the same untrained network
        return pipeline(AutoencoderKL.from_pretrained(folder).eval(), output)

    latents, images = runs("latent"), runs("np")
    with torch.no_grad():
        expected = (model.decode(model.latent_spec.unscale(latents)) / 2 + 0.5).clamp(0, 1)
    assert float(expected.std()) > 0.01
    # The same float32 network on the same latents; memory layout may reorder sums.
    np.testing.assert_allclose(images, expected.permute(0, 2, 3, 1).numpy(), atol=2e-5)


def measured() -> ChannelStatistics:
    statistics = ChannelStatistics(4)
    statistics.update(torch.tensor([0.5, 1.0, 2.0, 3.0]).view(1, 4, 1, 1) * torch.randn(16, 4, 8, 8) + CHANNELS)
    return statistics


@pytest.mark.parametrize("pipeline", ALL)
def test_every_pipeline_applies_a_measured_scaling_factor(
    pipeline: str, tiny_model: KLAutoencoder, tmp_path: Path
) -> None:
    out = export_diffusers(tiny_model, tmp_path / "out", scaling=measured())
    assert_decodes_as_the_specification_says(load_autoencoder(out), out, ALL[pipeline])


@pytest.mark.parametrize("pipeline", ALL)
def test_every_pipeline_applies_the_scale_of_the_pretrained_model(pipeline: str) -> None:
    folder = ldm_ae.core.resources.shipped_models()["kl-f8c4-small"]
    assert_decodes_as_the_specification_says(ldm_ae.load("kl-f8c4-small"), folder, ALL[pipeline])


def test_kolors_pipeline_inverts_the_scaling_factor(tiny_model: KLAutoencoder, tmp_path: Path) -> None:
    """The test reads its source, because the class needs a tokenizer's package that no test uses."""
    source = Path(diffusers.__file__).with_name("pipelines") / "kolors/pipeline_kolors.py"
    [line] = [
        node for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.Assign)
        and "vae.config.scaling_factor" in ast.unparse(node) and ast.unparse(node.targets[0]) == "latents"
    ]  # fmt: skip
    for folder in (
        export_diffusers(tiny_model, tmp_path / "out", scaling=measured()),
        ldm_ae.core.resources.shipped_models()["kl-f8c4-small"],
    ):
        pipeline = SimpleNamespace(vae=AutoencoderKL.from_pretrained(folder))
        names = {"self": pipeline, "latents": start()}
        exec(compile(ast.Module([line], []), str(source), "exec"), names)
        torch.testing.assert_close(names["latents"], load_autoencoder(folder).latent_spec.unscale(start()))


@pytest.mark.parametrize("pipeline", WITH_VECTORS)
@pytest.mark.parametrize("factor", [1.0, 0.5])  # 0.5 is Playground v2.5's, whose noise has sigma_data 0.5
def test_sdxl_pipelines_apply_channel_vectors(
    factor: float, pipeline: str, tiny_model: KLAutoencoder, tmp_path: Path
) -> None:
    spec = measured_scaling(tiny_model.latent_spec, measured(), per_channel=True)
    assert spec.scaling_factor == 1.0
    set_scaling_of(tiny_model, replace(spec, scaling_factor=factor))
    out = export_diffusers(tiny_model, tmp_path / "out")
    assert_decodes_as_the_specification_says(load_autoencoder(out), out, WITH_VECTORS[pipeline])
    again = measured_scaling(load_autoencoder(out).latent_spec, measured())
    assert (again.scaling_factor, again.latents_mean is None) == (factor, False)  # the form stays


@pytest.mark.parametrize("pipeline", WITH_SHIFT)
def test_sd3_and_flux_pipelines_apply_the_shift(pipeline: str, tiny_model: KLAutoencoder, tmp_path: Path) -> None:
    tiny_model.set_scaling(scaling_factor=0.36, shift_factor=0.12)
    statistics = measured()
    out = export_diffusers(tiny_model, tmp_path / "out", scaling=statistics)
    spec = load_autoencoder(out).latent_spec
    assert spec.shift_factor == pytest.approx(statistics.pooled_mean) != 0.12
    assert spec.scaling_factor == pytest.approx(1 / statistics.pooled_std)
    assert_decodes_as_the_specification_says(load_autoencoder(out), out, WITH_SHIFT[pipeline])
    with pytest.raises(UserError, match=r"shift_factor .*: pipelines that read it .* ignore latents_mean"):
        export_diffusers(tiny_model, tmp_path / "out", scaling=statistics, per_channel=True)


def test_shift_factor_is_never_null(tiny_model: KLAutoencoder) -> None:
    assert tiny_model.net.config.shift_factor is None  # diffusers' default
    for spec in (LatentSpec(channels=4, downsample_factor=4, scaling_factor=0.5), tiny_model.latent_spec):
        set_scaling_of(tiny_model, spec)
        assert tiny_model.net.config.shift_factor == 0.0


def test_legacy_factor_beside_vectors_is_read_as_one(tiny_model: KLAutoencoder, tmp_path: Path) -> None:
    statistics = measured()
    mean, std = tuple(statistics.channel_mean.tolist()), tuple(statistics.channel_std.tolist())
    once = 1.0 / statistics.pooled_std
    assert factor_beside_vectors(once, mean, std) == 1.0
    for other in (0.5, 1.0, once * 1.001):
        assert factor_beside_vectors(other, mean, std) == other
    assert factor_beside_vectors(once, None, None) == once
    tiny_model.set_scaling(scaling_factor=once, latents_mean=mean, latents_std=std)
    latents = 3.0 * torch.randn(2, 4, 8, 8) + CHANNELS
    expected = (latents - torch.tensor(mean).view(1, 4, 1, 1)) / torch.tensor(std).view(1, 4, 1, 1)
    torch.testing.assert_close(tiny_model.latent_spec.scale(latents), expected)
    tiny_model.save_pretrained(tmp_path / "old")
    written = json.loads((tmp_path / "old/config.json").read_text())
    assert written["scaling_factor"] == once
    read = load_autoencoder(tmp_path / "old")
    assert model_hash(read) == model_hash(tiny_model)
    out = export_diffusers(read, tmp_path / "out")
    assert json.loads((out / "config.json").read_text()) == written | {"scaling_factor": 1.0, "_name_or_path": ""}
    assert_decodes_as_the_specification_says(read, out, sdxl)


def test_discrete_model_is_written_with_its_scaling_factor(tmp_path: Path) -> None:
    statistics = measured()
    model = VQAutoencoder(
        quantizer=FSQ((8, 5, 5, 5)), block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4
    )  # fmt: skip
    mean, std = tuple(statistics.channel_mean.tolist()), tuple(statistics.channel_std.tolist())
    model.set_scaling(scaling_factor=1.0 / statistics.pooled_std, latents_mean=mean, latents_std=std)
    model.save_pretrained(tmp_path / "old")
    out = export_diffusers(load_autoencoder(tmp_path / "old"), tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert (config["scaling_factor"], tuple(config["latents_std"])) == (1.0, std)
