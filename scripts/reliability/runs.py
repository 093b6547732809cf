"""Training runs as processes of their own that can be killed, without paying for the imports each time.

The imports are done once here; each run is a fork of this process, which has computed nothing with torch and holds no
threads of it. Several processes find each other as under `accelerate launch`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import preload  # noqa: F401
import torch

import ldm_ae.cli

torch.set_num_threads(1)
POLL_SECONDS = 0.0005


class Run:
    """One command in `processes` processes, started at once.

    Args:
        arguments: Of `ldm-ae`.
        log: What it prints, appended.
        processes: How many.
        before: Called in each process first, such as to break something there.
    """

    def __init__(
        self, arguments: Sequence[str], log: Path, *, processes: int = 1, before: Callable[[], None] | None = None
    ):
        self.started = time.monotonic()
        self.statuses: dict[int, int] = {}
        environment = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
        if processes > 1:
            environment |= {
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes), "GLOO_SOCKET_IFNAME": "lo",
            }  # fmt: skip
        sys.stdout.flush()
        self.pids = [_fork(arguments, log, environment, rank, before) for rank in range(processes)]

    def send(self, number: signal.Signals, ranks: Sequence[int] | None = None) -> None:
        """A signal to all processes and their workers, as a scheduler sends it, or to some processes alone."""
        for rank, pid in enumerate(self.pids):
            if pid not in self.statuses and (ranks is None or rank in ranks):
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    (os.killpg if ranks is None else os.kill)(pid, number)

    def running(self) -> bool:
        """Whether any of its processes still is."""
        for pid in self.pids:
            if pid not in self.statuses:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    self.statuses[pid] = os.waitstatus_to_exitcode(status)
        return len(self.statuses) < len(self.pids)

    def wait(self, seconds: float = 300.0) -> list[int]:
        """Exit statuses by rank once all have ended; what is left after `seconds` is killed."""
        end = time.monotonic() + seconds
        while self.running():
            if time.monotonic() > end:
                self.send(signal.SIGKILL)
            time.sleep(0.005)
        return [self.statuses[pid] for pid in self.pids]

    def kill(self) -> None:
        """SIGKILL to all of them."""
        self.send(signal.SIGKILL)
        self.wait()


def run(
    arguments: Sequence[str], log: Path, *, processes: int = 1, before: Callable[[], None] | None = None
) -> list[int]:
    """Start and wait; exit statuses by rank."""
    return Run(arguments, log, processes=processes, before=before).wait()


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _fork(
    arguments: Sequence[str], log: Path, environment: dict[str, str], rank: int, before: Callable[[], None] | None
) -> int:
    pid = os.fork()
    if pid:
        with contextlib.suppress(PermissionError, ProcessLookupError):  # it has done so itself, or ended
            os.setpgid(pid, pid)
        return pid
    status = 1
    try:
        # Before there are other threads: torch makes its pool anew in a fork, and two threads at once break it.
        torch.set_num_threads(1)
        os.setpgid(0, 0)
        with log.open("a", buffering=1) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ |= environment
        if "WORLD_SIZE" in environment:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        if before is not None:
            before()
        status = ldm_ae.cli.main(list(arguments))
    except SystemExit as end:
        status = int(end.code or 0)
    except Exception:  # noqa: BLE001 - what a process prints when it ends by one
        traceback.print_exc()
    finally:  # the parent's own cleaning up is not this process's
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
