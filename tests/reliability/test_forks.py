"""Forks of a process with the imports of scripts/reliability/preload.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.processes import run_script


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "encode", "evaluate", "inspect"])
def test_commands_import_little_in_a_fork(command: str, samples: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = {
        "train": ("--config", samples.recipe, "--out", out),
        "encode": (samples.run, samples.images, out, "--workers", 0),
        "evaluate": (samples.run, samples.images, "--out", out, "--workers", 0, "--metrics", "psnr"),
        "inspect": (samples.store, "--json"),
    }[command]
    log = tmp_path / "log"
    script = Path(__file__).with_name("print_imports.py")
    assert run_script(script, [command, *map(str, arguments)], log) == 0, log.read_text()
    imported = json.loads(log.read_text().splitlines()[-1])
    # A fork repeats each import. Those of diffusers alone are 2,400 modules and three seconds.
    assert len(imported) < 40, "\n".join(imported)
