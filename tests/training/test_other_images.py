"""Training on images that are not RGB: steps, refusals, and whole runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from PIL import Image

from ldm_ae.core.draws import Draws
from ldm_ae.core.errors import UserError
from ldm_ae.discriminators import DiscriminatorPass, PatchDiscriminator
from ldm_ae.evaluation.metrics.perceptual import Perceptual
from ldm_ae.features import EfficientNetLite0
from ldm_ae.images.missing import MISSING, known
from ldm_ae.images.pixels import GREY, RGBA, PixelSpec
from ldm_ae.images.views import Triples, View
from ldm_ae.losses import AlphaAware, Objective, ObjectiveConfig
from ldm_ae.regularizers import EQVAE, Alignment, Chain, Regularizer, ScaleEquivariance
from ldm_ae.training import TrainingLosses
from ldm_ae.training.run import train
from ldm_ae.training.step_parts import MicroBatch, StepParts
from ldm_ae.training.steps import discriminator_step, generator_step
from ldm_ae.training.training_pass import TrainingPass
from ldm_ae.training.validation import Validation, check_best, choose_metrics
from tests.channels import FIVE, GAPS, PLAIN_FIVE, PatchModel, images
from tests.training.common import TINY, gradients, small_perceptual


def losses(pixels: PixelSpec, regularizer: Regularizer | None = None, **objective: Any) -> TrainingLosses:
    torch.manual_seed(0)
    config = ObjectiveConfig(regularization_weights={}, **objective)
    discriminator = PatchDiscriminator(n_layers=1, ndf=4, norm="none")
    return TrainingLosses(PatchModel(pixels), config, discriminator=discriminator, regularizer=regularizer)


@pytest.mark.parametrize(
    ("pixels", "view", "options"),
    [(GREY, None, {}), (RGBA, None, {"reconstruction": AlphaAware()}), (FIVE, None, {}), (PLAIN_FIVE, Triples(), {})],
    ids=["grey", "rgba", "five", "plain"],
)  # fmt: skip
def test_both_losses_train_a_model_of_other_images(pixels: PixelSpec, view: View | None, options: Any) -> None:
    module = losses(pixels, perceptual=small_perceptual(), view=view, **options)
    generator = module.generator_loss(images(pixels)[1], 0)
    generator.loss.backward()
    assert all(parameter.grad is not None for parameter in module.generator_parameters())
    discriminator = module.discriminator_loss(generator, 0)
    assert discriminator is not None
    discriminator.loss.backward()
    assert all(parameter.grad is not None for parameter in module.discriminator_parameters())
    assert module.discriminator is not None
    assert module.discriminator.pixels == pixels


def test_drawn_views_do_not_depend_on_the_micro_batches(make_accelerator: Callable[[str], Accelerator]) -> None:
    found = []
    for parts in (1, 2):
        accelerator = make_accelerator("no")
        torch.manual_seed(1)
        discriminator = PatchDiscriminator(n_layers=1, ndf=4, norm="none")
        discriminator.prepare(RGBA)
        config = ObjectiveConfig(
            perceptual=small_perceptual(), reconstruction=AlphaAware(), regularization_weights={},
            adaptive_gan_weight=False,
        )  # fmt: skip
        model = PatchModel(RGBA)
        step = StepParts(
            accelerator, TrainingPass(model), Objective(config, RGBA), DiscriminatorPass(discriminator)
        )  # fmt: skip
        pixel_values, noise = images(RGBA, count=4)[1], torch.zeros(4, 4, 8, 8)
        rows = [slice(i, i + 4 // parts) for i in range(0, 4, 4 // parts)]
        batches = [MicroBatch(pixel_values[row], noise[row], tuple(range(4))[row]) for row in rows]
        results, _ = generator_step(step, batches, 0)
        discriminator_step(step, batches, results, 0)
        found.append(gradients(model) | gradients(discriminator))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6)  # float32 sums in another order


@pytest.mark.parametrize("regularizer", [EQVAE(probability=1.0), ScaleEquivariance()], ids=["turned", "smaller"])
def test_missing_data_does_not_become_part_of_smaller_images(regularizer: Regularizer) -> None:
    pixel_values = torch.full((2, 2, 48, 48), 0.5)
    pixel_values[:, :, :17, 5:] = MISSING  # its border is inside of averaged pixels
    module = losses(GAPS, regularizer)
    output = module.training_pass(pixel_values, None, Draws([1, 2], "regularizer", step_seed=3))
    targets = [output.target, *(more.target for more in output.further)]
    smaller = [target for target in targets if target.shape[-1] < 48]
    assert smaller
    for target in smaller:
        assert not known(target).all()
        torch.testing.assert_close(target[known(target)], torch.full_like(target[known(target)], 0.5))


def test_discriminator_sees_no_difference_where_data_is_missing() -> None:
    pixel_values = images(GAPS)[1]
    missing = ~known(pixel_values)
    module = losses(GAPS)
    seen: list[torch.Tensor] = []
    assert module.discriminator is not None
    module.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    generator = module.generator_loss(pixel_values, 0)
    assert module.discriminator_loss(generator, 0) is not None
    assert len(seen) == 3  # the generator's reconstructions; real images and reconstructions
    for given in seen:
        assert not given[missing].any()
        assert given[~missing].any()


@pytest.mark.parametrize("chained", [False, True])
def test_alignment_sees_the_view_of_the_objective(chained: bool) -> None:
    features = EfficientNetLite0(weights=None, layers=(1,), image_size=32)
    regularizer: Regularizer = Alignment(features=features)
    regularizer = Chain(regularizers=(regularizer,)) if chained else regularizer
    with pytest.raises(UserError, match=r"Alignment with EfficientNetLite0 requires .* Set objective\.view to bands"):
        losses(PLAIN_FIVE, regularizer)
    module = losses(PLAIN_FIVE, regularizer, view=Triples())
    output = module.training_pass(images(PLAIN_FIVE)[1], None, MicroBatch(*[torch.zeros(1)] * 2, (3, 4)).draws("r"))
    assert output.terms["alignment"].shape == (2,)


def test_refusals_name_the_setting() -> None:
    with pytest.raises(UserError, match=r"objective\.perceptual \(small\) requires .* Set objective\.view"):
        losses(PLAIN_FIVE, perceptual=small_perceptual())
    with pytest.raises(UserError, match="AlphaAware needs rgba images, but the model uses grey"):
        losses(GREY, reconstruction=AlphaAware())


def test_best_metric_without_a_view_is_refused_before_training() -> None:
    chosen = choose_metrics("psnr", None)
    best = Perceptual(small_perceptual())
    validation = Validation([*chosen.metrics, best], best, added=True)
    with pytest.raises(UserError, match=r"training\.best_metric is 'small': small requires .* Set objective\.view"):
        check_best(validation, resolution=32, images=4, pixels=PLAIN_FIVE)
    check_best(validation, resolution=32, images=4, pixels=PLAIN_FIVE, view=Triples())
    check_best(validation, resolution=32, images=4, pixels=FIVE)


def write_images(folder: Path, channels: int) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(8):
        coarse = (generator.random((4, 4, channels)) * 255).astype(np.uint8)
        planes = [np.array(Image.fromarray(coarse[..., i]).resize((40, 40))) for i in range(channels)]
        stacked = np.stack(planes, axis=-1)
        if channels > 4:
            np.save(folder / f"{number}.npy", stacked)
        else:
            Image.fromarray(stacked[..., 0] if channels == 1 else stacked).save(folder / f"{number}.png")
    return folder


RUNS: dict[str, tuple[int, Any, dict[str, Any]]] = {
    "grey": (1, "grey", {"perceptual": "ssim"}),
    "rgba": (4, "rgba", {"reconstruction": "alpha", "perceptual": "ssim"}),
    "bands": (
        5, {"channels": 5, "names": ["blue", "green", "red", "nir", "swir"]},
        {"view": {"class_path": "bands", "init_args": {"bands": ["nir", "red", "green"]}}, "perceptual": "ssim"},
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("one_parser")
@pytest.mark.parametrize("kind", RUNS)
def test_run_records_the_view_and_shows_the_images(kind: str, tmp_path: Path) -> None:
    channels, pixels, objective = RUNS[kind]
    recipe = yaml.safe_load(yaml.safe_dump(TINY))
    recipe["model"]["init_args"]["pixels"] = pixels
    recipe["objective"] = objective
    recipe["discriminator"] = {"class_path": "patchgan", "init_args": {"n_layers": 1, "ndf": 4, "norm": "none"}}
    recipe["training"] |= {"max_steps": 2, "sample_every": 2, "validate_every": 2, "checkpoint_every": 2}
    recipe["data"] |= {"train": str(write_images(tmp_path / "images", channels)), "validation_images": 2}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    out = train(["--config", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")])
    saved = yaml.safe_load((out / "config.yaml").read_text())
    if kind == "bands":
        assert saved["objective"]["view"]["init_args"] == {"bands": ["nir", "red", "green"]}
    environment = json.loads((out / "environment.json").read_text())
    assert environment.get("view") == ("composited over black, white, checker" if kind == "rgba" else None)
    sample = np.asarray(Image.open(next((out / "samples").iterdir())).convert("RGB"))
    original = sample[16 : 16 + recipe["data"]["resolution"], : recipe["data"]["resolution"]]
    assert (np.ptp(original.astype(int), axis=-1).max() == 0) == (kind == "grey")
