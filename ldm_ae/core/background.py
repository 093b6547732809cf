"""Work that runs in a thread beside the main one, and whose failure stops the run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

_log = logging.getLogger("ldm_ae")


class BackgroundWriter:
    """A thread that runs one job at a time. The next `check`, `submit` or `wait` raises the exception of a failed job.

    As a context manager it exits once the job has ended; if the block raises, an exception of the job is logged.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._job: Future[None] | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Start `job` once the previous job has ended."""
        self.wait()
        self._job = self._pool.submit(job)

    def check(self) -> None:
        """Raise the exception of the last job if it has failed."""
        if self._job is not None and self._job.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the job has ended, and raise its exception if it failed."""
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def settle(self) -> None:
        """Wait until the job has ended, after an error elsewhere; an exception of the job is logged."""
        job, self._job = self._job, None
        if job is not None and (error := job.exception()) is not None:
            _log.warning("%s", error)

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.wait()
            else:
                self.settle()
        finally:
            self._pool.shutdown()
