"""Run a function in several gloo processes on this machine, as `accelerate launch` would set them up."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import torch
from torch import multiprocessing

from tests.processes import CONTEXT


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def run_processes(function: Callable[..., None], count: int, *arguments: object) -> None:
    """Run `function(rank, *arguments)` in `count` processes; raise the exception of any of them."""
    multiprocessing.start_processes(
        _entry, args=(function, count, free_port(), arguments), nprocs=count, start_method=CONTEXT.get_start_method()
    )


def _entry(rank: int, function: Callable[..., None], count: int, port: int, arguments: tuple[object, ...]) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    torch.set_num_threads(1)
    function(rank, *arguments)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
