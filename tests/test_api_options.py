"""`ldm_ae.evaluate`, `ldm_ae.compare`, `ldm_ae.explore` and `ldm_ae.find_outliers` take what their commands take."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ldm_ae
from ldm_ae.commands.compare import Compare
from ldm_ae.commands.evaluate import Evaluate
from ldm_ae.commands.explore import Explore
from ldm_ae.commands.interface import Command
from ldm_ae.commands.outliers import FindOutliers
from ldm_ae.core.errors import UserError
from ldm_ae.models import KLAutoencoder

ELSEWHERE = {
    "config": "ldm_ae.load takes it",
    "tile": "ldm_ae.models.Tiled",
    "overlap": "ldm_ae.models.Tiled",
    "tiling": "ldm_ae.models.Tiled",
}
"""Options of a command for which a model is made in Python, and by what."""


@pytest.mark.parametrize(
    ("command", "function"),
    [
        (Evaluate(), ldm_ae.evaluate),
        (Compare(), ldm_ae.compare),
        (Explore(), ldm_ae.explore),
        (FindOutliers(), ldm_ae.find_outliers),
    ],
)
def test_function_has_each_option_of_its_command_with_the_same_default(
    command: Command, function: Callable[..., Any]
) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    parameters = inspect.signature(function).parameters
    shown = (action for action in parser._actions if action.default != argparse.SUPPRESS)  # no help, no former names
    options = {action.dest: action.default for action in shown}
    assert options.keys() - parameters.keys() - ELSEWHERE.keys() == set()
    for name in (
        "batch_size",
        "crop",
        "limit",
        "size",
        "resize",
        "max_bad_fraction",
        "max_pixels",
        "pictures",
        "seed",
        "top",
    ):
        if name in options:
            assert parameters[name].default == options[name], name
    assert "metrics" not in options or list(parameters["metrics"].default) == options["metrics"]


def test_networks_are_passed_on(model: KLAutoencoder, image_folder: Path, tmp_path: Path) -> None:
    for function in (ldm_ae.evaluate, lambda *places, **options: ldm_ae.compare([places[0]], *places[1:], **options)):
        for name, value in (("features", "efficientnet_lite0"), ("dinov2", "a folder"), ("perceptual", "none")):
            with pytest.raises(UserError, match=f"--{name} {value} has no effect with --metrics psnr"):
                function(model, image_folder, metrics="psnr", **{name: value})
        with pytest.raises(UserError, match="--inception-weights has no effect"):
            function(model, image_folder, metrics="psnr", inception_weights="a file")


def test_prior_is_refused_where_no_metric_uses_it(model: KLAutoencoder, image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="prior has no effect with metrics psnr; remove it, or add rate"):
        ldm_ae.evaluate(model, image_folder, metrics="psnr", prior=tmp_path)
    with pytest.raises(UserError, match="is not a prior"):
        ldm_ae.evaluate(model, image_folder, metrics="rate", prior=tmp_path)


def test_precision_of_an_evaluation_can_differ_from_the_models(model: KLAutoencoder, image_folder: Path) -> None:
    report = ldm_ae.evaluate(
        model, image_folder, size=16, limit=2, metrics="psnr", precision="fp16", device="cpu"
    )  # fmt: skip
    assert report.evaluation.protocol["precision"] == "fp16"
    assert {parameter.dtype for parameter in model.parameters()} == {model.dtype}


def test_images_are_prepared_as_the_options_say(model: KLAutoencoder, image_folder: Path) -> None:
    options: dict[str, Any] = {"size": 16, "resize": "none", "colour_profiles": "ignore", "metrics": "psnr", "limit": 2}
    report = ldm_ae.evaluate(model, image_folder, **options, device="cpu")
    transform = report.evaluation.protocol["images"]["transform"]  # type: ignore[index]
    assert transform["resize"] == "none"
    assert "colour_profiles" not in transform  # which stands for "ignore"
    found = ldm_ae.compare([model], image_folder, **options, device="cpu")
    assert found.protocol["images"]["transform"] == transform
    with pytest.raises(UserError, match=r"12 of 12 .*|no images"):
        ldm_ae.evaluate(model, image_folder, size=16, metrics="psnr", max_pixels=10)
    for function in (ldm_ae.evaluate, lambda first, *rest, **options: ldm_ae.compare([first], *rest, **options)):
        with pytest.raises(UserError, match="size='native' and resize=20 exclude each other"):
            function(model, image_folder, size="native", resize=20)


def test_comparison_refuses_options_without_effect(model: KLAutoencoder, image_folder: Path) -> None:
    with pytest.raises(UserError, match="diffusion_images has no effect without diffusion"):
        ldm_ae.compare([model], image_folder, diffusion_images=image_folder)
    with pytest.raises(UserError, match="gif is not a codec; give jpeg, webp, avif"):
        ldm_ae.compare([model], image_folder, baseline="gif")
    with pytest.raises(UserError, match="batch size must be at least 1"):
        ldm_ae.compare([model], image_folder, batch_size=0)


@pytest.fixture
def model(tiny_model: KLAutoencoder) -> KLAutoencoder:
    return tiny_model.eval()
