"""What a run prints before its first step and after its last one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from ldm_ae.cli import main
from ldm_ae.core.errors import UserError
from ldm_ae.data.config import DataConfig
from ldm_ae.models import load_autoencoder
from ldm_ae.training import TrainingConfig
from ldm_ae.training import run as run_module
from ldm_ae.training.monitoring.banner import next_commands, trackers_line
from tests.training.common import run


def said(lines: str) -> dict[str, str]:
    """Return the lines `name: text` by name."""
    return dict(re.findall(r"^(\w+): +(.*)$", lines, re.MULTILINE))


def test_plan_is_printed_before_anything_is_built(
    tiny_config: Path, tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    printed: list[str] = []

    def stop(name: str) -> Callable[..., None]:
        def call(*_: object, **__: object) -> None:
            printed.append(capsys.readouterr().err)
            raise UserError(name)

        return call

    monkeypatch.setattr(run_module, "agreed_numerics", stop("numerics"))
    with pytest.raises(UserError, match="numerics"):
        run(tiny_config, tmp_path / "run")
    assert said(printed[0]) == {
        "run": f"{tmp_path / 'run'} (new)",
        "images": f"{image_folder} at 16x16 pixels, up to 3 of them held out for validation",
        "steps": "6, 4 images each (batch_size 2 x accumulation 2 x processes 1)",
        "writes": "metrics.jsonl every 2 steps, samples/ every 3, validation every 3, checkpoints/ every 3",
        "trackers": f"tensorboard (tensorboard --logdir {tmp_path / 'run' / 'logs'})",
    }
    monkeypatch.undo()
    monkeypatch.setattr(run_module, "build_config", stop("build"))
    with pytest.raises(UserError, match="build"):
        run(tiny_config, tmp_path / "run")
    assert said(printed[0] if len(printed) == 1 else printed[1])["precision"].startswith("fp32, channels-last")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_run_prints_its_parts_and_its_results(
    tiny_config: Path, tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(tiny_config, tmp_path / "run", "--training.trainable", "[decoder.*]",
              "--objective.regularization_weights", "{}")  # fmt: skip
    lines = said(capsys.readouterr().err)
    assert lines["data"] == "9 training images, 3 validation images"
    found = re.fullmatch(
        r"KLAutoencoder ([\d,]+) parameters \(([\d,]+) trainable\); "
        r"PatchDiscriminator ([\d,]+) parameters \(([\d,]+) trainable\)",
        lines["networks"],
    )
    assert found is not None
    total, trainable, discriminator, learning = (int(number.replace(",", "")) for number in found.groups())
    assert 0 < trainable < total
    assert discriminator == learning
    assert re.fullmatch(r"step 6 of 6; 6 steps in 0:\d\d:\d\d, [\d.]+ images/s", lines["finished"])
    assert lines["model"] == f"{out / 'model'} (EMA weights of step 6)"
    best = re.fullmatch(r"step (\d), psnr [\d.]+ \(higher is better\): (\S+)", lines["best"])
    assert best is not None
    assert best[2] == f"{out}@best"
    assert load_autoencoder(best[2]).latent_spec.channels == 4
    assert (out / "checkpoints" / "best").resolve().name == f"step-0000000{best[1]}"
    assert lines["next"] == f"ldm-ae evaluate {out} {image_folder} --out {out}-evaluation"


@pytest.mark.slow
def test_lower_best_metric_is_printed_with_its_own_sign(
    tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tiny_config, tmp_path / "run", "--training.max_steps", "1", "--training.best_metric", "perceptual",
        "--objective.perceptual", "{class_path: LPIPS, init_args: {net: squeeze, pretrained: false}}",
        "--data.resolution", "32")  # fmt: skip
    assert re.match(r"step 1, lpips_squeeze 0\.\d+ \(lower is better\)", said(capsys.readouterr().err)["best"])


@pytest.mark.slow
def test_next_commands_run(
    tiny_config: Path, tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(tiny_config, Path("my run"), "--training.max_steps", "1")
    for command in next_commands(Path("my run"), DataConfig(train=str(image_folder))):
        program, *arguments = shlex.split(command)
        assert program == "ldm-ae"
        assert main([*arguments, "--device", "cpu"]) == 0, command
    assert Path("my run-evaluation", "report.html").is_file()
    assert Path("my run-latents", "index.parquet").is_file()
    assert Path("my run-diffusers", "config.json").is_file()


def test_commands_and_trackers_are_printed_with_real_paths() -> None:
    data = DataConfig(train="a b", validation="held out")
    assert next_commands(Path("runs/x"), data) == [
        "ldm-ae evaluate runs/x 'held out' --out runs/x-evaluation",
        "ldm-ae encode runs/x 'a b' runs/x-latents",
        "ldm-ae export runs/x runs/x-diffusers --images 'a b'",
    ]
    training = TrainingConfig(trackers=["tensorboard", "wandb", "aim"], project="faces")
    assert trackers_line(training, Path("runs/x")) == (
        "wandb (project faces, run x), aim (project faces), tensorboard (tensorboard --logdir runs/x/logs)"
    )
    assert trackers_line(TrainingConfig(trackers=[]), Path("runs/x")) == "none"
