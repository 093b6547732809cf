"""The sample images: the same ones at every step and after a resume, decoded as the validation decodes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_ae.core.errors import UserError
from ldm_ae.data import EvaluationLoader, ImageTransform, TrainingLoader, open_source
from ldm_ae.evaluation import comparison_grid
from ldm_ae.images.uint8 import from_levels
from ldm_ae.models import KLAutoencoder
from ldm_ae.models.loading.load import load_autoencoder
from ldm_ae.training.monitoring.samples import SAMPLE_IMAGES, Samples
from tests.training.common import run

pytestmark = pytest.mark.slow  # commands and trainings, half a second and longer together with their set-up

SIZE, SHOWN, HEADER, GAP = 16, 64, 16, 2


def row(path: Path, which: int, columns: int) -> torch.Tensor:
    """Return one row of a sample image, (columns, 3, 16, 16) in [-1, 1]: 0 originals, 1 reconstructions."""
    top = HEADER + which * (SHOWN + GAP)
    pixels = np.array(Image.open(path))[top : top + SHOWN]
    images = [pixels[:, left : left + SHOWN] for left in range(0, columns * (SHOWN + 4), SHOWN + 4)]
    every = SHOWN // SIZE
    assert all(np.array_equal(image, image[::every, ::every].repeat(every, 0).repeat(every, 1)) for image in images)
    images = [image[::every, ::every] for image in images]
    return from_levels(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float())


def test_samples_show_the_held_out_images_and_the_averaged_models_reconstructions(
    tiny_config: Path, image_folder: Path, tmp_path: Path
) -> None:
    out = run(tiny_config, tmp_path / "run")
    from ldm_ae.data import split_holdout

    source = open_source(str(image_folder))
    _, held_out = split_holdout(source, 3, seed=0)
    expected = EvaluationLoader(source, ImageTransform(size=SIZE), batch_size=3, indices=held_out).first(8)
    paths = [out / "samples" / f"step-{step:08d}.png" for step in (3, 6)]
    for path in paths:
        assert (row(path, 0, 3) - expected).abs().max() < 1e-6
    # `model/` holds the averaged weights of the last step; the posterior's mode has no noise.
    model = load_autoencoder(out).eval()
    with torch.no_grad():
        reconstructions = model.decode(model.encode(expected).mode()).clamp(-1, 1)
    assert (row(paths[1], 1, 3) - reconstructions).abs().max() < 1.1 / 127.5  # rounded to 8 bits
    assert not torch.equal(row(paths[0], 1, 3), row(paths[1], 1, 3))


@pytest.mark.slow
def test_resumed_run_shows_the_same_images(tiny_config: Path, tmp_path: Path) -> None:
    whole = run(tiny_config, tmp_path / "whole", "--training.max_steps", "6", "--optimizer.schedule", "constant")
    parts = run(tiny_config, tmp_path / "parts", "--training.max_steps", "3", "--optimizer.schedule", "constant")
    run(tiny_config, parts, "--training.max_steps", "6", "--optimizer.schedule", "constant")
    for step in (3, 6):
        name = f"samples/step-{step:08d}.png"
        assert (whole / name).read_bytes() == (parts / name).read_bytes()


def test_samples_without_validation_are_named_training_images(tiny_config: Path, tmp_path: Path) -> None:
    more = ("--data.validation_images", "0", "--training.sample_every", "1", "--training.max_steps", "2")
    out = run(tiny_config, tmp_path / "run", *more)
    paths = sorted((out / "samples").iterdir())
    assert [path.name for path in paths] == [f"step-0000000{step}-training-images.png" for step in (1, 2)]
    assert torch.equal(row(paths[0], 0, 8), row(paths[1], 0, 8))


@pytest.fixture
def loaders(image_folder: Path) -> tuple[TrainingLoader, EvaluationLoader]:
    source = open_source(str(image_folder))
    transform = ImageTransform(size=SIZE)
    training = TrainingLoader(source, ImageTransform(size=SIZE, crop="random"), batch_size=2, seed=0)
    return training, EvaluationLoader(source, transform, batch_size=2, max_bad_fraction=1.0)


def test_drawing_samples_changes_neither_mode_nor_random_state(
    loaders: tuple[TrainingLoader, EvaluationLoader], tiny_model: KLAutoencoder
) -> None:
    samples = Samples(*loaders, ImageTransform(size=SIZE), batch_size=3, autocast_dtype=None)
    assert samples.pixel_values.shape == (SAMPLE_IMAGES, 3, SIZE, SIZE)
    tiny_model.train()
    before = torch.get_rng_state()
    first, again = (samples.draw(tiny_model, 5, "weights").tobytes() for _ in range(2))
    assert first == again
    drawn = samples.draw(tiny_model, 5, "weights")
    red, green, blue = drawn.getpixel((SHOWN + 1, HEADER))  # between two images
    assert red == green == blue
    assert 32 <= red <= 96  # neither white on a dark page nor black on a light one
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in tiny_model.modules())


def test_samples_skip_images_that_cannot_be_decoded(
    loaders: tuple[TrainingLoader, EvaluationLoader], image_folder: Path
) -> None:
    training, validation = loaders
    whole = validation.first(12)
    paths = sorted(image_folder.rglob("*.png"))
    paths[0].write_bytes(b"damaged")
    assert torch.equal(validation.first(3), whole[1:4])
    assert torch.equal(training.first(3, ImageTransform(size=SIZE)), whole[1:4])
    assert list(validation.rejected) == list(training.rejected) == ["cats/001.png"]
    for path in paths:
        path.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"none of the 12 images can be used; the first: cats/001\.png: "):
        validation.first(3)


def test_start_with_unreadable_validation_images_leaves_no_folder(
    tiny_config: Path, image_folder: Path, tmp_path: Path
) -> None:
    validation = tmp_path / "validation"
    validation.mkdir()
    (validation / "a.png").write_bytes(b"damaged")
    with pytest.raises(UserError, match="none of the 1 images can be used"):
        run(tiny_config, tmp_path / "run", "--data.validation", str(validation))
    assert not (tmp_path / "run").exists()


def test_grid_has_the_error_below_each_pair() -> None:
    originals = torch.full((2, 3, 4, 4), -1.0)
    reconstructions = originals.clone()
    reconstructions[1] += 0.5  # a quarter of the range: the lightest colour at the gain of 4
    pixels = np.array(comparison_grid(originals, reconstructions, errors=True))
    assert pixels.shape == (3 * 4 + 2 * 2, 2 * 4 + 4, 3)
    below = pixels[12:16]
    assert below[:, :4].max() < 10
    assert below[:, 8:].min() > 180
