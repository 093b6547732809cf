"""Processes that are forks of one that has imported the package, which takes seconds each time it is done anew."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

CLI = Path(__file__).parents[1] / "ldm_ae" / "cli.py"
"""A script that is `ldm-ae`."""
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["scripts.reliability.preload"])


def run_script(script: Path, arguments: Sequence[str], log: Path, *, packages: Path | None = None) -> int:
    """Run a script as `python SCRIPT ARGUMENTS` does, with its output in `log`; return its exit status.

    Args:
        script: The file.
        arguments: Of the script.
        log: Gets both outputs.
        packages: A further folder of installed packages.
    """
    paths = [str(script.parent), *([] if packages is None else [str(packages)])]
    process = CONTEXT.Process(target=_script, args=(str(script), list(arguments), str(log), dict(os.environ), paths))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def fork_commands(monkeypatch: pytest.MonkeyPatch, module: Any, log: Path) -> None:
    """Let the commands that a module starts with `subprocess.run([python, -m, ldm_ae.cli, ...])` be forks."""

    def run(command: Sequence[str], **_: object) -> None:
        assert list(command[:3]) == [sys.executable, "-m", "ldm_ae.cli"]
        status = run_script(CLI, command[3:], log)
        assert status == 0, log.read_text()

    monkeypatch.setattr(module, "subprocess", SimpleNamespace(run=run))


def _script(script: str, arguments: Sequence[str], log: str, environment: dict[str, str], paths: Sequence[str]) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    multiprocessing.set_start_method(None, force=True)  # the script's own processes start as they would without this
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = paths
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
