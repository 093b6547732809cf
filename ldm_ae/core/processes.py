"""Several processes on one store, as `torchrun` and `accelerate launch` start them.

They exchange small messages at the start and at the end, over gloo, and none between: each encodes its own part. A
process that dies closes its connections, which ends the others' waiting at once; finished work stays.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ldm_ae.core.devices import pick_device
from ldm_ae.core.errors import RunError, UserError

_CONNECT_TIMEOUT = timedelta(minutes=10)
"""Maximum wait at the start for a missing process. One that died before it was reachable looks the same, so that
without a launcher to end them the others wait as long."""
_WAIT_TIMEOUT = timedelta(hours=24)
"""Maximum wait of a finished process for the slowest. A machine that loses its network closes no connection."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Rank of this process and number of processes."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    """Rank among the processes of this machine."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.count or self.local_rank < 0:
            raise UserError(f"RANK={self.rank}, WORLD_SIZE={self.count}, LOCAL_RANK={self.local_rank} are inconsistent")

    @classmethod
    def from_environment(cls) -> Processes:
        """Read the launcher's RANK, WORLD_SIZE and LOCAL_RANK; without them there is one process.

        Raises:
            UserError: The values are inconsistent, or the address where the processes meet is missing.
        """
        names = {"rank": ("RANK", "0"), "count": ("WORLD_SIZE", "1"), "local_rank": ("LOCAL_RANK", "0")}
        values = {key: os.environ.get(name, default) for key, (name, default) in names.items()}
        if not all(value.isdigit() for value in values.values()):
            raise UserError(f"RANK, WORLD_SIZE and LOCAL_RANK must be numbers, got {', '.join(values.values())}")
        found = cls(**{key: int(value) for key, value in values.items()})
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if found.count > 1 and missing:
            raise UserError(
                f"WORLD_SIZE is {found.count}, but {missing[0]} is not set; start with torchrun or accelerate"
            )
        return found

    def device(self, name: str | torch.device) -> torch.device:
        """Return the device of this process; on a machine with several devices of the requested kind, its own."""
        device = pick_device(name) if isinstance(name, str) else name
        if self.count > 1 and device.type == "cuda" and device.index is None:
            return torch.device("cuda", self.local_rank % torch.cuda.device_count())
        return device

    @contextmanager
    def connect(self) -> Iterator[Channel]:
        """Open a channel between the processes for the duration of the context.

        Raises:
            RunError: The other processes do not connect.
        """
        if self.count == 1:
            yield Channel(self, None)
            return
        own = not dist.is_initialized()
        with _or_run_error():
            if own:
                dist.init_process_group("gloo", rank=self.rank, world_size=self.count, timeout=_CONNECT_TIMEOUT)
            group = dist.new_group(backend="gloo", timeout=_WAIT_TIMEOUT)
        try:
            yield Channel(self, group)
        finally:
            dist.destroy_process_group(None if own else group)


class Channel:
    """Broadcast, vote and barrier across the processes of `Processes.connect`."""

    def __init__(self, processes: Processes, group: Any):
        self._processes = processes
        self._group = group

    def broadcast(self, value: Any) -> Any:
        """Return the value of process 0, JSON values, in all processes; RunError if one has died."""
        if self._processes.count == 1:
            return value
        with _or_run_error():
            content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
            length = torch.tensor([len(content)])
            dist.broadcast(length, 0, group=self._group)
            if self._processes.rank:
                content = torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(content, 0, group=self._group)
        return json.loads(bytes(content.tolist()))

    def all_agree(self, vote: bool) -> bool:
        """Return whether `vote` is true in every process; RunError if one has died."""
        if self._processes.count == 1:
            return vote
        with _or_run_error():
            votes = torch.tensor([int(vote)])
            dist.all_reduce(votes, dist.ReduceOp.MIN, group=self._group)
        return bool(votes.item())

    def wait_for_all(self) -> None:
        """Wait until every process has arrived; RunError if one has died."""
        if self._processes.count > 1:
            with _or_run_error():
                dist.barrier(group=self._group)


@contextmanager
def _or_run_error() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo has no exception class of its own
        raise RunError(
            "another process of this command has ended or cannot be reached; see its output for the reason. Rerun the "
            "same command: finished files are kept"
        ) from error


def works_together(count: int) -> bool:
    """Return whether torch has connected this process with others, `count` in all."""
    return count > 1 and dist.is_available() and dist.is_initialized() and dist.get_world_size() == count


def gather_objects(value: Any) -> list[Any]:
    """Return the value of each process by its rank, in all processes; RunError if one has died."""
    found: list[Any] = [None] * dist.get_world_size()
    try:
        dist.all_gather_object(found, value)
    except RuntimeError as error:
        raise RunError(
            "another process of this command has ended or cannot be reached; see its output for the reason"
        ) from error
    return found


def worker_processes(count: int) -> int:
    """Return the number of a loader's worker processes: `count`, but at most one per CPU core that may be used."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(count, cores)
