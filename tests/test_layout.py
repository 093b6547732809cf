"""The structure of the package: the order of imports, and the maximum length of a file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_import_layers_are_respected() -> None:
    command = [
        str(Path(sys.executable).parent / "lint-imports"),
        "--config",
        str(ROOT / "pyproject.toml"),
        "--no-cache",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_no_file_is_over_400_lines() -> None:
    code = [*(ROOT / "ldm_ae").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
    long = {path.name: count for path in code if (count := len(path.read_text().splitlines())) > 400}
    assert not long
