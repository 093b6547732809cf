"""The regularizers in the steps and in runs: gradients, accumulation, resumption, the exported scale."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from ldm_ae.core.draws import REGULARIZER
from ldm_ae.core.errors import UserError
from ldm_ae.discriminators import PatchDiscriminator
from ldm_ae.losses import L1, ObjectiveConfig
from ldm_ae.models import KLAutoencoder, load_autoencoder
from ldm_ae.models.scaling import scale_is_known
from ldm_ae.regularizers import Regularizer
from ldm_ae.regularizers.eq_vae import EQVAE
from ldm_ae.regularizers.normalized_latents import NormalizedLatents
from ldm_ae.regularizers.scale_equivariance import ScaleEquivariance
from ldm_ae.training import TrainingConfig
from ldm_ae.training.sizes import check_sizes
from ldm_ae.training.steps import generator_step
from tests.training.common import TINY, assert_close, files, gradients, make_batches, make_parts, run, whole
from tests.training.doubles import CHAIN_TERMS, every_kind

TOLERANCE = 2e-5
"""Float32 sums over the batch in another order; the textbook's way in other operations."""


def prepared(regularizer: Regularizer) -> Regularizer:
    regularizer.prepare(KLAutoencoder.example("AutoencoderKL"))  # a downsample factor of 2
    return regularizer


@pytest.mark.parametrize("reduction", ["ldm", "mean"])
@pytest.mark.parametrize("count", [1, 2])
def test_second_reconstruction_has_the_textbook_gradient(accelerator: Accelerator, count: int, reduction: str) -> None:
    """d(x, D(z)) + α d(x↓, D(z↓)) with d the objective's losses, each with the log-variance, in one graph."""
    alpha = 0.5
    parts = make_parts(
        accelerator, regularizer=prepared(ScaleEquivariance(alpha=alpha, factors=(2,))), discriminator=False,
        reduction=reduction, regularization_weights={},
    )  # fmt: skip
    batches = make_batches(count, 4 // count)
    batch, model, objective = whole(batches), parts.plain_autoencoder, parts.objective
    assert objective.log_variance is not None
    objective.log_variance.data.fill_(0.3)
    latents = model.encode(batch.pixel_values).sample(noise=batch.noise)
    small, target = (torch.nn.functional.avg_pool2d(values, 2) for values in (latents, batch.pixel_values))
    loss = torch.zeros(())
    for weight, found, images in (
        (1.0, model.decode(latents), batch.pixel_values), (alpha, model.decode(small), target),
    ):  # fmt: skip
        assert objective.perceptual is not None
        distance = (found - images).abs().mean() + objective.perceptual(found, images).mean()
        elements = batch.pixel_values[0].numel() if reduction == "ldm" else 1
        loss = loss + weight * elements * (distance / objective.log_variance.exp() + objective.log_variance)
    loss.backward()
    expected = gradients(model) | {"log_variance": objective.log_variance.grad}
    for module in (model, objective):
        module.zero_grad()
    _, logs = generator_step(parts, batches, step=0)
    assert_close(gradients(model) | {"log_variance": objective.log_variance.grad}, expected, TOLERANCE)
    small_loss = (model.decode(small) - target).abs().mean() + objective.perceptual(model.decode(small), target).mean()
    assert float(logs["scale_equivariance_loss"]) == pytest.approx(float(small_loss.detach()), rel=1e-4)


@pytest.mark.parametrize("small", [False, True])
def test_discriminator_sees_the_target_of_the_generator(accelerator: Accelerator, small: bool) -> None:
    regularizer = prepared(EQVAE(probability=float(not small), small_image_probability=1.0, smallest_scale=0.5))
    parts = make_parts(accelerator, regularizer=regularizer)
    (batch,) = make_batches(1, 4, step_seed=3)
    (result,), logs = generator_step(parts, [batch], step=0)
    images = regularizer.encoded_images(batch.pixel_values, batch.draws(REGULARIZER))
    side = result.target.shape[-1]
    assert side < 16
    assert result.reconstructions.shape == result.target.shape
    assert images.shape[-1] == (side if small else 16)
    if small:
        assert torch.equal(result.target, images)
        with torch.no_grad():  # the first rows and columns of the noise
            noise = batch.noise[..., : side // 2, : side // 2]
            expected = parts.plain_autoencoder(images, noise).reconstructions
        assert torch.allclose(result.reconstructions, expected, atol=1e-6)
    assert {"adaptive_weight", "generator_loss", "rec_loss"} <= set(logs)


@pytest.mark.slow
@pytest.mark.parametrize("probability", [0.0, 1.0], ids=["smaller images", "transformed latents"])
def test_accumulation_equals_one_large_batch(accelerator: Accelerator, probability: float) -> None:
    found = []
    for batches in (make_batches(4, 2, step_seed=1), [whole(make_batches(4, 2, step_seed=1))]):
        parts = make_parts(accelerator, regularizer=every_kind(probability), regularization_weights=CHAIN_TERMS)
        logs: dict[str, Tensor] = {}
        for step in (0, 1):
            parts.plain_pass.zero_grad()
            _, logs = generator_step(parts, batches, step)
        buffers = {name: buffer.clone() for name, buffer in parts.plain_pass.regularizer.named_buffers()}
        found.append((gradients(parts.plain_pass), logs | buffers))
    (by_parts, values), (expected, expected_values) = found
    assert_close(by_parts, expected, TOLERANCE)
    assert {"scale_equivariance_loss", "free_bits_kl_loss", "regularizers.5.running_var"} <= set(values)
    for name, value in expected_values.items():
        assert torch.allclose(values[name], value, rtol=1e-4, atol=1e-6), name


@pytest.mark.slow
def test_networks_are_tried_on_the_sizes_that_a_regularizer_makes(tiny_model: KLAutoencoder) -> None:
    def check(regularizer: Regularizer, resolution: int, **parts: Any) -> None:
        regularizer.prepare(tiny_model)
        objective = ObjectiveConfig(reconstruction=L1(), regularization_weights={})
        check_sizes(
            tiny_model, regularizer, objective, parts.get("discriminator"),
            TrainingConfig(batch_size=2, max_steps=100), sizes=[(resolution, resolution)], resolution=resolution,
            validation=False,
        )  # fmt: skip

    discriminator = PatchDiscriminator(ndf=8)  # takes images of 24 and more
    check(ScaleEquivariance(factors=(2,)), 32, discriminator=discriminator)  # which does not see the smaller ones
    check(EQVAE(smallest_scale=0.5), 48, discriminator=discriminator)
    with pytest.raises(
        UserError,
        match=r"the discriminator \(PatchDiscriminator\) does not accept images of 8x8 in batches of 2, which EQVAE "
        r"makes: the minimum size is 24x24\. Raise data\.resolution, or give it fewer layers",
    ):
        check(EQVAE(), 32, discriminator=discriminator)


# ----------------------------------------------------------------------------------------------------------------- runs


def recipe(folder: Path, images: Path, regularizer: Any, **changes: dict[str, Any]) -> Path:
    config = json.loads(json.dumps(TINY))
    config["data"]["train"] = str(images)
    config["regularizer"] = regularizer
    config["discriminator"]["init_args"]["norm"] = "group"
    for group, values in changes.items():
        config[group] |= values
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


CHAIN = [
    {"class_path": "eq-vae", "init_args": {"smallest_scale": 0.5}}, "scale-equivariance", "noise", "prefix-mask",
    "free-bits", "normalized-latents",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("one_parser")
def test_resumed_run_equals_an_uninterrupted_one(image_folder: Path, tmp_path: Path) -> None:
    config = recipe(tmp_path, image_folder, CHAIN, objective={"regularization_weights": {"free_bits_kl": 1e-4}})
    steps = "--training.max_steps"
    complete = run(config, tmp_path / "complete", steps, "6")
    run(config, tmp_path / "parts", steps, "3")
    parts = run(config, tmp_path / "parts", steps, "6")
    for last in ("model", "checkpoints/step-00000006"):
        assert files(complete / last) == files(parts / last)
    # The same steps in smaller micro-batches see the same sizes, draws and statistics.
    smaller = run(
        config, tmp_path / "smaller", steps, "6", "--training.batch_size", "1", "--training.accumulation", "4"
    )
    expected, found = (
        load_file(folder / "checkpoints/step-00000006/regularizer.safetensors") for folder in (complete, smaller)
    )
    assert set(found) == {f"regularizers.5.{name}" for name in ("running_mean", "running_var", "updates")}
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-3, atol=1e-4), name  # after six updates of the encoder
    with pytest.raises(UserError, match="another regularizer"):
        run(config, tmp_path / "parts", steps, "7", "--regularizer", "[noise, free-bits]")


@pytest.mark.slow
@pytest.mark.usefixtures("one_parser")
def test_trained_model_and_its_checkpoints_have_the_running_statistics_as_scale(
    image_folder: Path, tmp_path: Path
) -> None:
    config = recipe(tmp_path, image_folder, "normalized-latents")
    out = run(config, tmp_path / "run", "--training.max_steps", "6")  # the second checkpoint of the run
    state = load_file(out / "checkpoints/step-00000006/regularizer.safetensors")
    expected = state["running_mean"].tolist(), (state["running_var"].double() + 1e-4).sqrt().tolist()
    for place in (out, out / "checkpoints/step-00000006", out / "checkpoints/step-00000006/ema"):
        model = load_autoencoder(place)
        assert model.latent_spec.latents_mean == pytest.approx(expected[0])
        assert model.latent_spec.latents_std == pytest.approx(expected[1])
        assert scale_is_known(model)
    assert int(state["updates"]) == 6


def test_step_that_is_undone_leaves_the_statistics(make_accelerator: Callable[[str], Accelerator]) -> None:
    """They are among the tensors that the guard restores."""
    regularizer = NormalizedLatents()
    prepared(regularizer)
    assert {id(buffer) for buffer in regularizer.learning_buffers()} == {
        id(regularizer.running_mean), id(regularizer.running_var), id(regularizer.updates)
    }  # fmt: skip
