"""The decoding processes of a loader, which are those of `torch.utils.data.DataLoader`."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ldm_ae.core.processes import worker_processes

_ASK_TO_STOP = (signal.SIGINT, signal.SIGTERM)
_SECONDS_AFTER_SIGTERM = 60
"""Seconds that a worker continues, so that its main process can exit cleanly."""


def data_loader(
    builder: Dataset[Any], batches: Sampler[list[tuple[int, int]]] | list[list[tuple[int, int]]], workers: int,
    *, persistent: bool,
) -> DataLoader[Any]:  # fmt: skip
    """Return a loader of the result of `builder` for each batch of (epoch, index) pairs, in their order."""
    workers = worker_processes(workers)
    return DataLoader(
        builder,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_as_is,
        pin_memory=torch.cuda.is_available(),
        # torch draws the workers' base seed from here instead of from the global generator; nothing else uses it.
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=_start_worker,
        persistent_workers=persistent and workers > 0,
    )


def _as_is(batch: Any) -> Any:  # torch types it as a list of samples
    """Return `batch`, which the builder has already assembled."""
    return batch


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Delay signals that arrive while workers start: for this process briefly, for the workers until they are ready."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ASK_TO_STOP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(worker: int) -> None:  # noqa: ARG001 - torch calls it with the worker's number
    """Ignore Ctrl-C and delay Slurm's SIGTERM, which go to every process of a job: the main process alone handles them,
    and needs its workers until it has saved. torch itself sets one thread a worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Not ignored forever: torch ends a stuck worker by this signal.
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_SECONDS_AFTER_SIGTERM))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ASK_TO_STOP)
