"""Runs whose steps have images of several sizes: resuming, several processes, and refusals."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from PIL import Image

from ldm_ae.core.errors import UserError
from ldm_ae.data import Batch
from ldm_ae.models import KLAutoencoder
from ldm_ae.training import Stopped, Trainer
from ldm_ae.training.monitoring.run_log import Window
from ldm_ae.training.run import build_config, parse_config
from tests.pictures import smooth_picture
from tests.training.common import TINY, files, run
from tests.training.processes import run_processes

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_parser")]
SHAPES = [(70, 40), (40, 70), (72, 41), (50, 60)]
TRAINING = TINY["training"] | {"trackers": [], "sample_every": 6, "checkpoint_every": 6, "log_every": 1}
DISCRIMINATOR = TINY["discriminator"] | {"init_args": {"n_layers": 1, "ndf": 8, "norm": "group"}}
"""Without batch normalization, so that several processes equal one."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with three sizes; steps of four among 13 training images."""
    folder = tmp_path_factory.mktemp("sizes")
    (folder / "images").mkdir()
    for i in range(16):
        smooth_picture(i, *SHAPES[i % 4]).save(folder / f"images/{i:03d}.png")
    data = TINY["data"] | {"train": str(folder / "images"), "sizes": ["16x24", "24x16", "16x16"]}
    recipe = TINY | {"data": data, "training": TRAINING, "discriminator": DISCRIMINATOR}
    recipe["optimizer"] = {"schedule": "constant", "learning_rate": 1e-3}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def finished(config: Path) -> Path:
    """A run of six steps."""
    return run(config, config.with_name("run"))


def losses(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


def test_run_takes_steps_of_several_sizes(
    config: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Resumed after two steps and after five, in the middle of epochs, with the bytes of an uninterrupted run."""
    seen: list[tuple[int, ...]] = []
    plain_step = Trainer.train_step

    def step_and_signal(self: Trainer, batches: Sequence[Batch]) -> object:
        result = plain_step(self, batches)
        (size,) = {tuple(batch.pixel_values.shape[2:]) for batch in batches}
        seen.append(size)
        if self.step in (2, 5):
            os.kill(os.getpid(), signal.SIGINT)
        return result

    monkeypatch.setattr(Trainer, "train_step", step_and_signal)
    for _ in range(2):
        with pytest.raises(Stopped):
            run(config, tmp_path / "parts")
    run(config, tmp_path / "parts")
    assert len(seen) == 6
    assert len(set(seen)) == 3
    expected = files(finished / "checkpoints/step-00000006")
    assert files(tmp_path / "parts/checkpoints/step-00000006") == expected
    printed = capsys.readouterr().err
    assert re.search(r"images: .* at 16x24, 24x16, 16x16 pixels; up to 3 of .* validation, at 16x16 pixels", printed)
    assert re.search(r"sizes: +3 with images: 16x24 \d, .*; the largest, 16x24, needs the most memory\n", printed), (
        printed
    )
    assert all(line["images_per_second"] > 0 for line in losses(finished))


def train_in_two(rank: int, config: str, out: str) -> None:
    run(Path(config), Path(out), "--training.batch_size", "1")


@pytest.mark.slow
def test_accumulation_and_two_processes_equal_one(config: Path, finished: Path, tmp_path: Path) -> None:
    """The first three steps in one process without accumulation, the others in two with it, resumed."""
    out = tmp_path / "run"
    run(config, out, "--training.max_steps", "3", "--training.batch_size", "4", "--training.accumulation", "1")
    run_processes(train_in_two, 2, str(config), str(out))
    found, expected = losses(out), losses(finished)
    assert [line["step"] for line in found] == [line["step"] for line in expected] == [1, 2, 3, 4, 5, 6]
    for mine, theirs in zip(found, expected, strict=True):
        for name in (
            "rec_loss",
            "kl_loss",
            "kl_per_latent",
            "grad_norm",
            "epoch",
            *["generator_loss"] * (mine["step"] > 2),
        ):
            assert mine[name] == pytest.approx(theirs[name], rel=2e-5), (mine["step"], name)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            ["--data.sizes", "16x24,24x16"],
            r"another bucket_assignment \(16x16=3 images \(.*now 24x16=7 images .*; give the images, data.sizes and",
        ),
        (["--data.sizes", "null"], r"another bucket_assignment .*now one size\)"),
    ],
)
def test_resume_with_other_sizes_is_refused(
    config: Path, finished: Path, tmp_path: Path, more: list[str], words: str
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    with pytest.raises(UserError, match=words):
        run(config, out, "--training.max_steps", "7", *more)


def test_resume_after_an_image_has_changed_its_size_is_refused(config: Path, finished: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    images = Path(shutil.copytree(config.with_name("images"), tmp_path / "images"))
    run(config, out, "--data.train", str(images))  # moved images are the same ones
    changed = images / "000.png"
    size = changed.stat().st_size
    Image.new("RGB", (40, 70)).save(changed)
    changed.write_bytes(changed.read_bytes().ljust(size, b"\0"))  # as long as before
    assert changed.stat().st_size == size
    with pytest.raises(UserError, match="holds a run with another bucket_assignment"):
        run(config, out, "--data.train", str(images), "--training.max_steps", "7")


def test_run_of_one_size_does_not_continue_with_several(shared_config: Path, shared_run: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(shared_run, tmp_path / "run"))
    with pytest.raises(UserError, match=r"another bucket_assignment \(one size, now "):
        run(shared_config, out, "--data.sizes", "16x16,16x24", "--training.max_steps", "7")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--data.sizes", "16x24,15x16"], "15"),
        (
            ["--data.sizes", "16x16,4x64", "--discriminator.n_layers", "3", "--objective.discriminator_start", "1"],
            r"does not accept images of 4x64 in batches of 2: .*Change data.sizes or data.area, or give it fewer",
        ),
        (["--data.area", "32x32", "--data.multiple", "9"], "27"),
    ],
)
def test_every_size_is_checked_before_the_run(config: Path, tmp_path: Path, more: list[str], words: str) -> None:
    sizes = [] if "--data.sizes" in more else ["--data.sizes", "null"]
    with pytest.raises(UserError, match=words):
        build_config(parse_config(["--config", str(config), "--out", str(tmp_path / "run"), *sizes, *more]))


def test_window_averages_the_number_of_latents(accelerator: Accelerator) -> None:
    window = Window()
    for kl, latents in ((4.0, 64), (6.0, 96), (8.0, 128)):
        window.add({"kl_loss": torch.tensor(kl)}, 4, 0.5, latents)
    values = window.means(accelerator)
    assert (values["kl_loss"], window.mean_latents) == (6.0, 96.0)
    assert values["images_per_second"] == 8
    window.add({"kl_loss": torch.tensor(1.0)}, 4, 0.5, 64)
    window.means(accelerator)
    assert window.mean_latents == 64


@pytest.mark.slow
def test_compiled_run_has_graphs_of_one_size_each(
    config: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the numbers of a resumed run would depend on the size that came first."""
    shapes: list[tuple[int, ...]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        shapes.extend(tuple(value.shape) for value in inputs if value.shape[1:2] == (3,) and value.shape[-1] > 4)
        return graph.forward  # runs as it is, which takes no compiler

    def compile_parts(model: KLAutoencoder, *, for_training: bool = False, apart: object = None) -> None:
        assert for_training
        model.net.encoder.compile(backend=backend)

    torch._dynamo.reset()
    monkeypatch.setattr(KLAutoencoder, "compile_parts", compile_parts)
    more = ("--training.compile", "true", "--discriminator", "null", "--data.validation_images", "0")
    out = run(config, tmp_path / "run", *more)
    torch._dynamo.reset()
    assert {shape[2:] for shape in shapes} == {(16, 24), (24, 16), (16, 16)}
    assert all(isinstance(side, int) for shape in shapes for side in shape)
    assert (out / "model").is_dir()
