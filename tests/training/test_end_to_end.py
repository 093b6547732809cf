"""Runs with autoencoder and SiT together: equal steps, resuming, the exported scale, the pipeline, the command line."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel
from safetensors.torch import load_file, save_file

from ldm_ae.core.errors import UserError
from ldm_ae.models import DCAutoencoder, KLAutoencoder, VQAutoencoder, load_autoencoder
from ldm_ae.quantizers import FSQ
from ldm_ae.regularizers import EndToEnd
from ldm_ae.training.configuration.parsing import parse_config
from ldm_ae.training.end_to_end import fold_scale, load_sit
from ldm_ae.training.steps import generator_step
from tests.scripts import load_script
from tests.training.common import TINY, assert_close, files, gradients, make_batches, make_parts
from tests.training.processes import run_processes

WEIGHTS = {"kl": 1e-4, "diffusion": 1.0, "alignment": 0.5, "latent_alignment": 1.5}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("train_end_to_end")


@pytest.fixture
def config(image_folder: Path, tmp_path: Path) -> Path:
    """A tiny run with every loss: a discriminator, accumulation, an average."""
    recipe: dict[str, Any] = TINY | {
        "data": TINY["data"] | {"train": str(image_folder)},
        "objective": TINY["objective"] | {"regularization_weights": WEIGHTS},
        "optimizer": {"schedule": "constant"},
        "regularizer": {
            "class_path": "ldm_ae.regularizers.EndToEnd",
            "init_args": {
                "features": {"class_path": "EfficientNetLite0", "init_args": {"weights": None, "layers": [1]}},
                "width": 32, "depth": 2, "projector_width": 16,
            },
        },
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path / "tiny.yaml"


def run(script: ModuleType, config: Path, out: Path, *more: str) -> int:
    AcceleratorState._reset_state(reset_partial_state=True)
    return script.main(["--images", str(config.parent / "images"), "--config", str(config), "--out", str(out), *more])


def take_step(rank: int, count: int, accumulation: int, folder: str) -> None:
    """The gradients, buffers and logged scalars of one step, written by each rank."""
    accelerator = Accelerator(cpu=True)
    regularizer = EndToEnd.example()
    torch.manual_seed(5)
    regularizer.prepare(KLAutoencoder.example("AutoencoderKL"))
    parts = make_parts(accelerator, regularizer=regularizer, reduction="mean", regularization_weights=WEIGHTS)
    # Micro-batch j of rank r is part j * count + r of the global batch of 8.
    batches = make_batches(count * accumulation, 8 // (count * accumulation))[rank::count]
    _, logs = generator_step(parts, batches, step=0)
    found = gradients(parts.plain_pass) | {f"b.{name}": value for name, value in regularizer.named_buffers()}
    found |= {f"log.{name}": accelerator.reduce(value, reduction="mean") for name, value in logs.items()}
    path = Path(folder) / f"{count}-{accumulation}-{rank}.safetensors"
    # The gradient of an attention's key bias is 0, but for rounding: softmax does not depend on it.
    save_file({k: v.float().contiguous() for k, v in found.items() if not k.endswith("to_k.bias")}, path)


@pytest.mark.slow
def test_accumulation_and_two_processes_equal_one_batch(tmp_path: Path) -> None:
    for count, accumulation in ((1, 1), (1, 2), (2, 1), (2, 2)):
        run_processes(take_step, count, count, accumulation, str(tmp_path))
    expected = load_file(tmp_path / "1-1-0.safetensors")
    assert any(name.startswith("regularizer.sit.") for name in expected)
    for name in ("1-2-0", "2-1-0", "2-1-1", "2-2-0", "2-2-1"):
        assert_close(load_file(tmp_path / f"{name}.safetensors"), expected, 5e-5)  # float32 sums in another order


@pytest.mark.slow
def test_resumed_run_equals_an_uninterrupted_one_to_the_bit(
    script: ModuleType, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(script, config, tmp_path / "whole", "--steps", "4") == 0
    assert run(script, config, tmp_path / "parts", "--steps", "2") == 0
    capsys.readouterr()
    assert run(script, config, tmp_path / "parts", "--steps", "4") == 0
    assert "resuming from step-00000002" in capsys.readouterr().err
    for folder in ("model", "pipeline", "checkpoints/step-00000004"):
        one, other = (files(tmp_path / name / folder) for name in ("whole", "parts"))
        manifest = {name for name in one if name.endswith("MANIFEST.json")}
        assert one.keys() == other.keys()
        assert {name for name in one if one[name] != other[name]} <= manifest, folder
    name = "samples/generated-step-00000004.png"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


@pytest.mark.slow
def test_run_has_a_pipeline_and_the_scale_of_the_running_statistics(
    script: ModuleType, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run(script, config, out, "--steps", "3") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"samples: {out}/samples/generated-step-00000003.png", f"pipeline: {out}/pipeline"]
    state = load_file(out / "checkpoints/step-00000003/regularizer.safetensors")
    spec = load_autoencoder(out).latent_spec
    assert spec.latents_mean == pytest.approx(state["running_mean"].tolist(), rel=1e-6)
    assert spec.latents_std == pytest.approx((state["running_var"].double() + 1e-4).sqrt().tolist(), rel=1e-6)
    assert (spec.scaling_factor, spec.shift_factor) == (1.0, 0.0)
    pipeline = DiTPipeline.from_pretrained(out / "pipeline")
    assert type(pipeline.transformer) is DiTTransformer2DModel
    assert torch.equal(pipeline.transformer.proj_out_2.weight, state["average.proj_out_2/weight"])
    pipeline.set_progress_bar_config(disable=True)
    arguments = dict(guidance_scale=1.0, num_inference_steps=2, output_type="np")
    images = pipeline([1000, 1000], generator=torch.Generator().manual_seed(0), **arguments).images
    assert images.shape == (2, 16, 16, 3)
    assert images.std() > 0.01
    before = files(out / "pipeline")
    assert script.main(["--out", str(out), "--sample"]) == 0  # without --images, nothing is trained
    assert files(out / "pipeline") == before


@pytest.mark.parametrize("convolutions", [True, False])
def test_folded_autoencoder_decodes_normalized_latents_to_the_same_images(convolutions: bool) -> None:
    model = KLAutoencoder(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, mid_block_add_attention=False,
        use_quant_conv=convolutions,
    ).eval()  # fmt: skip
    mean, std = (1.0, -2.0, 0.5, 0.0), (2.0, 0.3, 1.0, 7.0)
    model.set_scaling(scaling_factor=1.0, latents_mean=mean, latents_std=std)
    folded = fold_scale(model)
    assert type(folded) is AutoencoderKL
    assert folded.config.scaling_factor == 1.0
    assert folded.config.latents_mean is None
    latents, images = torch.randn(2, 4, 4, 4), torch.rand(2, 3, 8, 8) * 2 - 1
    with torch.no_grad():
        expected = model.decode(model.latent_spec.unscale(latents))
        assert torch.allclose(folded.decode(latents).sample, expected, atol=1e-5)
        ours, theirs = model.encode(images), folded.encode(images).latent_dist
        assert torch.allclose(theirs.mean, model.latent_spec.scale(ours.mode()), atol=1e-5)
        assert torch.allclose(
            theirs.std * torch.tensor(std).view(1, -1, 1, 1), ours.log_variance.div(2).exp(), atol=1e-5
        )


def test_models_without_a_vector_scale_and_runs_without_a_sit_are_refused(tmp_path: Path) -> None:
    vq = VQAutoencoder(quantizer=FSQ(levels=[4, 4]), block_out_channels=(8, 16), norm_num_groups=4)
    with pytest.raises(UserError, match="EndToEnd: AutoencoderDC cannot store latents_mean and latents_std"):
        EndToEnd.example().prepare(DCAutoencoder.example("AutoencoderDC"))
    with pytest.raises(UserError, match="has no SiT; its run was trained without the regularizer EndToEnd"):
        load_sit(tmp_path, vq)
    with pytest.raises(UserError, match="a pipeline needs an AutoencoderKL"):
        fold_scale(vq)
    with pytest.raises(UserError, match="the model has no latents_mean and latents_std"):
        fold_scale(KLAutoencoder.example("AutoencoderKL"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "recorded"), [([], "facebook/dinov2-small"), (["--features-weights", "random"], None)]
)
def test_features_option_replaces_the_recipes_network(
    weights: list[str], recorded: str | None, script: ModuleType
) -> None:
    given = [
        "--images",
        "i",
        "--out",
        "o",
        "--features",
        "dinov2",
        *weights,
        "--depth",
        "3",
        "--training.batch_size",
        "2",
    ]
    config = parse_config(script.train_arguments(*script.build_parser().parse_known_args(given)))
    assert (config.out, config.data.train, config.training.batch_size) == ("o", "i", 2)
    assert config.regularizer.init_args.depth == 3
    features = config.regularizer.init_args.features
    assert features.class_path == "ldm_ae.features.DINOv2"
    assert (features.init_args.layers, features.init_args.image_size) == ([-1], 224)
    assert features.init_args.weights == recorded


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "o"], "--images is missing"),
        (["--images", "i", "--out", "o", "--features-weights", "random"], "no effect without --features"),
        (["--images", "i", "--out", "o", "--stepz", "3"], "no option is named 'stepz'"),
        (["--images", "nowhere", "--out", "o"], "nowhere"),
        (
            ["--images", "i", "--out", "o", "--config", "vq_f8"],
            "model: expected KLAutoencoder, which DiTPipeline decodes",
        ),
        (["--out", "o", "--sample"], "o has no valid checkpoint; train first"),
    ],
)
def test_mistakes_are_refused_in_one_line(
    arguments: list[str], words: str, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert script.main(arguments) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("train_end_to_end: error: "))
    assert words in line
    assert not list(tmp_path.iterdir())


def test_help_names_every_option(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        script.main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"--{name}" in shown for name in ("images", "out", "autoencoder", "features", "sample", *script.OPTIONS))
