"""One folder, one writer; nothing that a dead process leaves keeps others out."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ldm_ae.core.errors import UserError
from ldm_ae.io.locks import LOCK, only_writer, refuse_if_held

HOLD = """
import os, sys
from ldm_ae.io.locks import only_writer
with only_writer(sys.argv[1]):
    if os.fork() == 0:  # a worker, which lives on for a while
        os.close(1)
        sys.stdin.read()
        os._exit(0)
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_lock_refuses_another_process_and_names_the_holder(tmp_path: Path) -> None:
    process = holder(tmp_path)
    told = rf"in use by process {process.pid} on {socket.gethostname()}, since 20\d\d-"
    with pytest.raises(UserError, match=told), only_writer(tmp_path):
        pass
    with pytest.raises(UserError, match=told):
        refuse_if_held(tmp_path)
    process.communicate()
    assert process.returncode == 0
    assert not (tmp_path / LOCK).exists()
    with only_writer(tmp_path):
        assert (tmp_path / LOCK).is_file()
    refuse_if_held(tmp_path)
    assert not list(tmp_path.iterdir())


def test_lock_of_a_killed_process_is_released_despite_live_workers(tmp_path: Path) -> None:
    process = holder(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (tmp_path / LOCK).is_file()
    refuse_if_held(tmp_path)
    with only_writer(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()
    process.communicate()  # ends the worker


def test_lock_is_not_reentrant(tmp_path: Path) -> None:
    with only_writer(tmp_path):
        with pytest.raises(UserError, match="already in use by this process"), only_writer(tmp_path):
            pass
        assert (tmp_path / LOCK).is_file()  # the first one's, still


def test_lock_is_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), only_writer(tmp_path):
        raise RuntimeError("stop")
    with only_writer(tmp_path):
        pass
