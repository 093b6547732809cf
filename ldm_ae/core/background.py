"""Work that goes on in a thread while the main one does, and whose failure stops the run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

_log = logging.getLogger("ldm_ae")


class BackgroundWriter:
    """One job at a time. What a job raises is raised where the run looks next: `check`, `submit` or `wait`.

    As a context it ends once the job has ended; where the block raises, what the job raises beside that is logged.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._job: Future[None] | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Start `job` once the one before it has ended."""
        self.wait()
        self._job = self._pool.submit(job)

    def check(self) -> None:
        """Raise what the last job raised, if it has ended so."""
        if self._job is not None and self._job.done():
            self.wait()

    def wait(self) -> None:
        """Until the job has ended; raises what it raised."""
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def settle(self) -> None:
        """Until the job has ended, after an error elsewhere: what the job raises beside that is logged."""
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
