"""Real diffusers pipelines, built tiny from configuration, with an exported autoencoder inside."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    LDMPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ldm_ae.interop import export_diffusers
from ldm_ae.models import ChannelStatistics, KLAutoencoder, VQAutoencoder
from ldm_ae.quantizers import VQ


@pytest.fixture
def export(tiny_model: KLAutoencoder, tmp_path: Path) -> Path:
    """The tiny model exported with a measured scale that is not 1."""
    statistics = ChannelStatistics(4)
    statistics.update(3.0 * torch.randn(8, 4, 8, 8))
    return export_diffusers(tiny_model, tmp_path / "export", scaling=statistics)


def own_images(model: KLAutoencoder, export: Path, final_latents: Tensor) -> np.ndarray:
    """(B, H, W, 3) in [0, 1]: this project's decoding of the scaled latents at the end of a pipeline."""
    scaling_factor = json.loads((export / "config.json").read_text())["scaling_factor"]
    assert 0.3 < scaling_factor < 0.4  # 1 / 3, from the fixture
    with torch.no_grad():
        images = model.decode(final_latents / scaling_factor)
    return (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def tiny_tokenizer(folder: Path) -> CLIPTokenizer:
    letters = list(string.ascii_lowercase)
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


def test_stable_diffusion_pipeline_decodes_equally(tiny_model: KLAutoencoder, export: Path, tmp_path: Path) -> None:
    text_config = CLIPTextConfig(
        vocab_size=54, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=52, eos_token_id=53, pad_token_id=53,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16, attention_head_dim=4,
        norm_num_groups=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(export), text_encoder=CLIPTextModel(text_config).eval(), unet=unet.eval(),
        tokenizer=tiny_tokenizer(tmp_path), scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    settings = dict(
        prompt=["a cat", "a dog"], latents=torch.randn(2, 4, 8, 8), num_inference_steps=2, height=32, width=32
    )
    latents = pipeline(**settings, output_type="latent").images
    images = pipeline(**settings, output_type="np").images
    assert images.shape == (2, 32, 32, 3)
    assert np.isfinite(images).all()
    # The same float32 network on the same latents; batch and memory layout may reorder sums.
    np.testing.assert_allclose(images, own_images(tiny_model, export, latents), atol=1e-5)


def recorded_steps(pipeline: Any) -> list[Tensor]:
    """The latents after each step of the pipeline's next run."""
    ends: list[Tensor] = []
    step = pipeline.scheduler.step

    def recording_step(*args: Any, **kwargs: Any) -> Any:
        output = step(*args, **kwargs)
        ends.append(output.prev_sample)
        return output

    pipeline.scheduler.step = recording_step
    return ends


def test_dit_pipeline_decodes_equally(tiny_model: KLAutoencoder, export: Path) -> None:
    transformer = DiTTransformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        patch_size=2,
    )
    pipeline = DiTPipeline(
        transformer=transformer.eval(),
        vae=AutoencoderKL.from_pretrained(export),
        scheduler=DDIMScheduler(clip_sample=False),
    )
    pipeline.set_progress_bar_config(disable=True)
    ends = recorded_steps(pipeline)
    images = pipeline(
        class_labels=[3, 7], num_inference_steps=2, generator=torch.Generator().manual_seed(1), output_type="np"
    ).images
    assert images.shape == (2, 32, 32, 3)
    assert np.isfinite(images).all()
    assert len(ends) == 2
    latents = ends[-1].chunk(2)[0]  # guidance runs the batch twice; the first half is the result
    # The same float32 network on the same latents; batch and memory layout may reorder sums.
    np.testing.assert_allclose(images, own_images(tiny_model, export, latents), atol=1e-5)


def test_ldm_pipeline_decodes_the_nearest_codes_equally(tmp_path: Path) -> None:
    model = VQAutoencoder(
        quantizer=VQ(32, 4), block_out_channels=(8, 16, 16), layers_per_block=1, norm_num_groups=4,
        mid_block_add_attention=False,
    ).eval()  # fmt: skip
    torch.nn.init.normal_(model.quantizer.embedding.weight, std=3.0)  # as the latents that follow
    statistics = ChannelStatistics(4)
    statistics.update(3.0 * torch.randn(8, 4, 8, 8))
    export = export_diffusers(model, tmp_path / "export", scaling=statistics)
    unet = UNet2DModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, attention_head_dim=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    pipeline = LDMPipeline(
        vqvae=VQModel.from_pretrained(export), unet=unet.eval(), scheduler=DDIMScheduler(clip_sample=False)
    )
    pipeline.set_progress_bar_config(disable=True)
    ends = recorded_steps(pipeline)
    generator = torch.Generator().manual_seed(1)
    images = pipeline(batch_size=2, num_inference_steps=2, generator=generator, output_type="np").images
    assert images.shape == (2, 32, 32, 3)
    assert len(ends) == 2
    scaling_factor = json.loads((export / "config.json").read_text())["scaling_factor"]
    assert 0.3 < scaling_factor < 0.4
    with torch.no_grad():
        found = model.quantizer(ends[-1] / scaling_factor)
        expected = (model.decode(found.quantized) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert len(found.indices.unique()) > 8
    # The same float32 network on the same codes; batch and memory layout may reorder sums.
    np.testing.assert_allclose(images, expected, atol=1e-5)
