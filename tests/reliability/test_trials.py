"""Shortened forms of the trials in scripts/reliability, as a user runs them; docs/RELIABILITY.md has the long ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.processes import run_script

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts" / "reliability"
SHORT = {
    "kill": (1, "kill_training.py", ["--trials", "4", "--inside-saves", "2", "--steps", "6"]),
    "kill of two processes": (
        1,
        "kill_training.py",
        ["--trials", "2", "--inside-saves", "1", "--processes", "2", "--steps", "6"],
    ),
    "SIGTERM": (1, "kill_training.py", ["--trials", "2", "--inside-saves", "0", "--signal", "SIGTERM", "--steps", "6"]),
    "Ctrl-C": (1, "kill_training.py", ["--trials", "2", "--inside-saves", "1", "--signal", "SIGINT", "--steps", "6"]),
    "kill of encoding": (2, "kill_encoding.py", ["--trials", "4", "--images", "200"]),
    "kill of two encoding": (2, "kill_encoding.py", ["--trials", "3", "--images", "200", "--processes", "2"]),
    "every format": (2, "every_format.py", ["--trials", "1", "--images", "60"]),
    "saves": (3, "trace_save.py", ["--trials", "2"]),
    "full disk": (4, "full_disk.py", ["--trials", "3"]),
    "not finite": (8, "not_finite.py", ["--trials", "8"]),
    "two writers": (9, "two_writers.py", ["--trials", "4"]),
    "world size": (10, "world_size.py", ["--trials", "1"]),
    "missing parts": (12, "missing_state.py", ["--trials", "5"]),
    "dead process": (13, "rank_death.py", ["--trials", "1"]),
}
"""By name: the row, the script, its arguments."""


def impossible(script: str) -> str:
    """Why this machine cannot run a trial; empty if it can."""
    if script == "trace_save.py" and shutil.which("strace") is None:
        return "strace is not installed"
    if script == "full_disk.py":
        as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
        mount = ["unshare", "--mount", *as_root, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        if shutil.which("unshare") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
            return "file systems cannot be mounted here"
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_trial_holds(name: str, tmp_path: Path) -> None:
    row, script, arguments = SHORT[name]
    if reason := impossible(script):
        pytest.skip(reason)
    result = tmp_path / "result.json"
    log = tmp_path / "log"
    status = run_script(SCRIPTS / script, [*arguments, "--json", str(result)], log)
    assert status == 0, log.read_text()
    found = json.loads(result.read_text())
    assert found["row"] == row
    assert found["trials"] == found["passed"] > 0


@pytest.mark.slow
def test_every_trial_is_listed_and_has_a_short_form() -> None:
    scripts = {path.name for path in SCRIPTS.glob("*.py") if "= Trial(" in path.read_text()}
    run_by_all = (SCRIPTS / "all.py").read_text()
    assert not [name for name in scripts if f'"{name}' not in run_by_all]
    tests = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("*.py"))
    assert not [name for name in scripts if name.removesuffix(".py") not in tests]


def test_document_shows_the_recorded_results() -> None:
    document = (ROOT / "docs" / "RELIABILITY.md").read_text()
    for command, found in json.loads((ROOT / "docs" / "reliability.json").read_text()).items():
        [line] = [line for line in document.splitlines() if f"`python scripts/reliability/{command}`" in line]
        assert f"**{found['passed']} of {found['trials']}**" in line
