"""A comparison of two tiny models and one that fails, made once by the command."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from ldm_ae.cli import main
from ldm_ae.models import KLAutoencoder
from tests.pictures import write_class_folders

METRICS = ("psnr", "ssim", "rate", "storage", "latent_spectrum", "channel_correlation")


class Made(NamedTuple):
    """The folder of a comparison, and what it was made of."""

    folder: Path
    arguments: list[str]
    status: int
    output: str
    errors: str


def save_model(folder: Path, *, seed: int, channels: int = 4, broken: bool = False) -> Path:
    torch.manual_seed(seed)
    model = KLAutoencoder(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, mid_block_add_attention=False,
        latent_channels=channels,
    )  # fmt: skip
    if broken:
        model.last_layer.data.fill_(float("nan"))
    model.save_pretrained(folder)
    return folder


def run(arguments: list[str]) -> int:
    """The command with few metrics and pictures, on images of 32 pixels."""
    options = ["--size", "32", "--pictures", "2", "--workers", "0"]
    return main(["compare", *options, *arguments, "--metrics", *METRICS])


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("comparison")
    models = [save_model(root / "one_&_first", seed=1), save_model(root / "two", seed=2, channels=8)]
    broken = save_model(root / "broken", seed=3, broken=True)
    images = write_class_folders(root / "images")
    arguments = [*map(str, models), str(broken), str(images), "--out", str(root / "out")]
    output, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(errors):
        status = run([*arguments, "--baseline", "jpeg", "--figures", "png"])
    return Made(root / "out", arguments, status, output.getvalue(), errors.getvalue())


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the models that are evaluated from here on."""
    module = sys.modules["ldm_ae.comparison.compare"]  # the package has a function of this name
    found: list[str] = []
    plain: Callable = module.evaluate

    def evaluate(*args: object, model_name: str, **options: object) -> object:
        found.append(Path(model_name).name)
        return plain(*args, model_name=model_name, **options)

    monkeypatch.setattr(module, "evaluate", evaluate)
    return found
