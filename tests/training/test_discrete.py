"""Discrete autoencoders through the same steps and the same loop."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import VQModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.discriminators import DiscriminatorPass, PatchDiscriminator
from ldm_ae.io.files import sha256
from ldm_ae.losses import Objective, ObjectiveConfig
from ldm_ae.models import VQAutoencoder, load_autoencoder
from ldm_ae.quantizers import EMAVQ, VQ, CodebookCare, GumbelVQ, Quantizer
from ldm_ae.training import Trainer
from ldm_ae.training.run import parse_config, train
from ldm_ae.training.step_parts import MicroBatch, StepParts
from ldm_ae.training.steps import generator_step
from ldm_ae.training.training_pass import TrainingPass
from tests.training.common import assert_close, make_batches, small_perceptual, step_gradients, whole
from tests.training.processes import run_processes

pytestmark = pytest.mark.usefixtures("one_parser")

CARE = {"kmeans_iterations": 2, "restart_below": 0.5, "usage_decay": 0.5}
QUANTIZERS = {
    "VQ": ({"codebook_size": 16, "codebook_dim": 4, "care": CARE}, {"codebook": 1.0, "commitment": 1.0}),
    "EMAVQ": ({"codebook_size": 16, "codebook_dim": 4, "decay": 0.9, "care": CARE}, {"commitment": 1.0}),
    "GumbelVQ": ({"codebook_size": 16, "codebook_dim": 4}, {"kl": 1e-3}),
    "FSQ": ({"levels": [5, 4, 3]}, {}),
    "ResidualVQ": (
        {"quantizer": {"class_path": "ldm_ae.quantizers.LFQ", "init_args": {"codebook_dim": 4}}, "levels": 2},
        {"commitment": 1.0, "entropy": 0.4},
    ),
}
"""Arguments of each, as a recipe has them, and weights of its terms."""


def recipe(name: str, images: Path, path: Path) -> Path:
    arguments, weights = QUANTIZERS[name]
    config = {
        "model": {
            "class_path": "ldm_ae.models.VQAutoencoder",
            "init_args": {
                "quantizer": {"class_path": f"ldm_ae.quantizers.{name}", "init_args": arguments},
                "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4,
                "mid_block_add_attention": False,
            },
        },
        "data": {"train": str(images), "resolution": 16, "workers": 0, "validation_images": 3},
        "objective": {"regularization_weights": weights, "gan_weight": 0.1},
        "discriminator": {
            "class_path": "ldm_ae.discriminators.PatchDiscriminator",
            "init_args": {"n_layers": 1, "ndf": 8, "norm": "group"},
        },
        "training": {
            "max_steps": 4, "batch_size": 2, "accumulation": 2, "precision": "no", "ema_decay": 0.9, "log_every": 2,
            "sample_every": 4, "validate_every": 4, "checkpoint_every": 2,
        },
    }  # fmt: skip
    path.write_text(yaml.safe_dump(config))
    return path


def files(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    "name", [name if name == "FSQ" else pytest.param(name, marks=pytest.mark.slow) for name in QUANTIZERS]
)
def test_discrete_run_resumes_to_the_same_checkpoint(name: str, image_folder: Path, tmp_path: Path) -> None:
    config = recipe(name, image_folder, tmp_path / "recipe.yaml")
    out = train(["--config", str(config), "--out", str(tmp_path / "run")])
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "train"][-1]
    terms = {f"{term}_loss" for term in QUANTIZERS[name][1]}
    assert {"codebook_usage", "codebook_perplexity", "adaptive_weight"} | terms <= last.keys()
    model = load_autoencoder(out)
    assert isinstance(model, VQAutoencoder)
    size = model.latent_spec.codebook_size
    assert size is not None
    assert 1 / size <= last["codebook_usage"] <= 1
    assert 1 <= last["codebook_perplexity"] <= size
    # A step of 4 images has 4 x 8 x 8 places.
    assert last["codebook_spread"] == pytest.approx(last["codebook_perplexity"] / min(size, 256), rel=1e-6)
    assert model.latent_spec.scaling_factor != 1.0  # measured
    if name in ("VQ", "EMAVQ"):
        assert VQModel.from_pretrained(out / "model").config.num_vq_embeddings == 16
    # Resuming from step 2 gives the same bytes at step 4: codes, counts, draws, optimizers.
    newest = out / "checkpoints" / "step-00000004"
    expected = files(newest)
    assert (out / "checkpoints" / "step-00000002").is_dir()
    shutil.rmtree(newest)
    AcceleratorState._reset_state(reset_partial_state=True)
    train(["--config", str(config), "--out", str(out)])
    assert files(newest) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["VQ", "EMAVQ"])
def test_non_finite_step_changes_no_code(
    name: str, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(name, image_folder, tmp_path / "recipe.yaml")
    plain_step = Trainer.train_step
    left_out = []

    def step(self: Trainer, batches: Any) -> Any:
        if self.step != 2 or left_out:
            return plain_step(self, batches)
        before = {key: value.clone() for key, value in self.autoencoder.state_dict().items()}
        batches[1].pixel_values[0, 0, 0, 0] = float("nan")
        assert plain_step(self, batches) is None
        left_out.append(all(torch.equal(before[key], value) for key, value in self.autoencoder.state_dict().items()))
        return None

    monkeypatch.setattr(Trainer, "train_step", step)
    train(["--config", str(config), "--out", str(tmp_path / "run")])
    assert left_out == [True]


def test_unknown_regularization_term_is_refused(image_folder: Path, tmp_path: Path) -> None:
    config = recipe("FSQ", image_folder, tmp_path / "recipe.yaml")
    weights = ["--objective.regularization_weights", "{kl: 1.0}"]
    with pytest.raises(UserError, match=r"regularization_weights: expected terms of \[\], got 'kl'"):
        train(["--config", str(config), "--out", str(tmp_path / "run"), *weights])


def test_unknown_quantizer_argument_is_refused(image_folder: Path, tmp_path: Path) -> None:
    config = recipe("VQ", image_folder, tmp_path / "recipe.yaml")
    text = config.read_text().replace("codebook_size", "codebook_sise")
    config.write_text(text)
    with pytest.raises(UserError, match="codebook_sise"):
        parse_config(["--config", str(config), "--out", "x"])


def make_parts(accelerator: Accelerator, quantizer: Quantizer, weights: dict[str, float]) -> StepParts:
    torch.manual_seed(1)
    model = VQAutoencoder(
        quantizer=quantizer, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        mid_block_add_attention=False,
    )  # fmt: skip
    config = ObjectiveConfig(perceptual=small_perceptual(), regularization_weights=weights, gan_weight=0.8)
    pair = DiscriminatorPass(PatchDiscriminator(n_layers=1, ndf=8, norm="group"))
    return StepParts(
        accelerator,
        accelerator.prepare_model(TrainingPass(model.train())),
        Objective(config),
        accelerator.prepare_model(pair),
    )


def one_of_each() -> list[tuple[Quantizer, dict[str, float]]]:
    """Same codes on every call."""
    torch.manual_seed(0)
    care = CodebookCare(restart_below=0.9, usage_decay=0.5)
    return [
        (VQ(16, 4, care=care), {"codebook": 1.0, "commitment": 1.0}),
        (EMAVQ(16, 4, decay=0.9, care=care), {"commitment": 1.0}),
        (GumbelVQ(16, 4), {"kl": 1e-3}),
    ]


def take_step(parts: StepParts, batches: list[MicroBatch]) -> dict[str, Tensor]:
    """Gradients of one step, and the quantizer's state and statistics after two."""
    found: dict[str, Tensor] = {}
    for step in range(2):
        _, logs = generator_step(parts, batches, step=step)
        found = found or {f"gradient.{name}": value.clone() for name, value in step_gradients(parts).items()}
    found |= {f"state.{name}": value.clone() for name, value in parts.plain_autoencoder.quantizer.state_dict().items()}
    return found | {f"log.{name}": logs[name] for name in ("codebook_usage", "codebook_perplexity")}


@pytest.mark.slow
def test_accumulation_equals_one_large_batch() -> None:
    """The adaptive weight takes additional passes first; codes learn only from those of the step."""
    accelerator = Accelerator(cpu=True)
    for (quantizer, weights), (twin, _) in zip(one_of_each(), one_of_each(), strict=True):
        batches = make_batches(2, 4)
        found = take_step(make_parts(accelerator, quantizer, weights), batches)
        expected = take_step(make_parts(accelerator, twin, weights), [whole(batches)])
        assert_close(found, expected, 5e-5)  # float32 sums in another order


def take_steps(rank: int, count: int, folder: str) -> None:
    accelerator = Accelerator(cpu=True)
    for i, (quantizer, weights) in enumerate(one_of_each()):
        # Micro-batch j of rank r is part j * count + r of the global batch of 8.
        batches = make_batches(2 * count, 8 // (2 * count))[rank::count]
        found = take_step(make_parts(accelerator, quantizer, weights), batches)
        save_file({k: v.contiguous() for k, v in found.items()}, Path(folder) / f"{count}-{rank}-{i}.safetensors")


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    take_steps(0, 1, str(tmp_path))
    run_processes(take_steps, 2, 2, str(tmp_path))
    for i in range(3):
        for rank in (0, 1):
            found = load_file(tmp_path / f"2-{rank}-{i}.safetensors")
            # Float32 sums in another order; biases are sums that nearly cancel.
            assert_close(found, load_file(tmp_path / f"1-0-{i}.safetensors"), 5e-5)
