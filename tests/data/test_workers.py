"""The decoding processes of loaders."""

from __future__ import annotations

import os
import warnings

from torch.utils.data import Dataset

from ldm_ae.core.processes import worker_processes
from ldm_ae.data.workers import data_loader


def test_no_more_workers_start_than_there_are_cores() -> None:
    """torch warns of them, in three lines each time, and they would take turns."""
    assert [worker_processes(count) for count in (0, 1)] == [0, 1]
    cores = worker_processes(10**6)
    assert 1 <= cores <= (os.cpu_count() or 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert data_loader(Dataset(), [], 10**6, persistent=False).num_workers == cores
