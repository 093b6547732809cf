"""What a command imports before it works: the wait for help and for the refusal of a slip of the fingers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SLOW_TO_IMPORT = {
    "accelerate", "datasets", "diffusers", "huggingface_hub", "lpips", "scipy", "sympy", "tensorboard", "torchvision",
    "transformers",
}  # fmt: skip
"""Packages that take from a tenth of a second to five seconds."""
CALL = """
import json, sys
from ldm_ae.cli import main
try:
    status = main(sys.argv[2:])
except SystemExit as exited:
    status = exited.code
open(sys.argv[1], "w").write(json.dumps([status, sorted(sys.modules)]))
"""


def call(tmp_path: Path, *arguments: str) -> tuple[int, set[str], subprocess.CompletedProcess[str]]:
    """Run `ldm-ae` in a process of its own, and return its status, the imported modules, and what it printed."""
    log = tmp_path / "modules.json"
    ran = subprocess.run(
        [sys.executable, "-c", CALL, str(log), *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    status, modules = json.loads(log.read_text())
    return status, set(modules), ran


@pytest.mark.slow
@pytest.mark.parametrize("option", [["--help"], ["--model.help", "KLAutoencoder"]])
def test_help_of_train_imports_no_slow_library_but_torch(tmp_path: Path, option: list[str]) -> None:
    status, modules, ran = call(tmp_path, "train", *option)
    assert status == 0
    assert "block_out_channels" in ran.stdout or "--training.max_steps" in ran.stdout
    assert modules & SLOW_TO_IMPORT == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "encode nowhere {out}",
        "decode nowhere {out}",
        "evaluate nowhere --out {out}",
        "reconstruct nowhere {out}",
        "inspect nowhere",
        "convert nowhere {out} --format mar",
    ],
)
def test_invalid_path_is_refused_without_importing_diffusers(tmp_path: Path, command: str) -> None:
    status, modules, ran = call(tmp_path, *command.format(out=tmp_path / "out").split())
    assert status == 2
    assert "nowhere" in ran.stderr
    assert modules & {"diffusers", "transformers", "torchvision", "accelerate"} == set()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian", "--config", "configs/kl_f8.yaml"], "train"),
        (["train", "--config", "configs/kl_f9.yaml"], "configs/kl_f9.yaml"),
        (["train", "--config", "configs/kl_f8.yaml", "--lr", "1"], "optimizer.learning_rate"),
        (["train", "--config", "configs/kl_f8.yaml", "--model.init_args.latent_channel", "4"], "latent_channels"),
        (["encode", "images", "store", "--sise", "32"], "--size"),
    ],
)
def test_misspelt_option_is_refused_without_importing_torch(tmp_path: Path, arguments: list[str], words: str) -> None:
    status, modules, ran = call(tmp_path, *arguments)
    assert status == 2
    assert words in ran.stderr
    assert modules & {*SLOW_TO_IMPORT, "torch", "numpy", "PIL"} == set()


def test_invalid_file_is_refused_without_importing_torch(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("training: {max_stepz: 3}\n")
    status, modules, ran = call(tmp_path, "train", "--config", str(tmp_path / "recipe.yaml"))
    assert status == 2
    assert "line 1, column 12" in ran.stderr
    assert modules & {*SLOW_TO_IMPORT, "torch", "numpy", "PIL"} == set()
