"""Questions to the Hugging Face hub and downloads from it, whose client this module imports: import it at use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from threading import Thread
from typing import TypeVar

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from ldm_ae.core.errors import UserError, reason

T = TypeVar("T")
SECONDS = 4.0
"""Time in which the hub must answer. There is one try."""


def file_names(repository: str) -> Exception | list[str]:
    """Ask the hub once for the names of a repository's files; return them, or the failure."""
    found = asked(lambda: HfApi().model_info(repository, timeout=SECONDS), SECONDS + 1)
    return found if isinstance(found, Exception) else [item.rfilename for item in found.siblings or ()]


def asked(call: Callable[[], T], seconds: float) -> T | Exception:
    """Return the result of a call of the hub's library, or its failure: `TimeoutError` after `seconds` without one.

    A thread calls, because no timeout of a connection limits the time in which a host's name is resolved. Exceptions
    that are not the network's, the hub's or this machine's are raised.
    """
    answer: Future[T] = Future()

    def ask() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:  # noqa: BLE001 - passed on to the thread that waits
            answer.set_exception(error)

    Thread(target=ask, name="hub", daemon=True).start()
    try:
        failure = answer.exception(timeout=seconds)
    except FutureTimeoutError:
        return TimeoutError()
    if failure is None:
        return answer.result()
    # The library's own errors, those of the system, and those of its HTTP client, which differs between versions.
    if isinstance(failure, HfHubHTTPError | OSError | ValueError) or type(failure).__module__.startswith("httpx"):
        assert isinstance(failure, Exception)
        return failure
    raise failure


def describe_failure(failure: Exception) -> str:
    """Return why the hub did not give a repository, and what to do."""
    if isinstance(failure, GatedRepoError):  # a subclass of RepositoryNotFoundError
        return "it is gated: accept its terms on its page, then run `hf auth login`"
    if isinstance(failure, RepositoryNotFoundError):
        return "there is no such repository, or it is private; check the spelling, or run `hf auth login`"
    if isinstance(failure, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, and the cache does not have it; check the spelling, or unset HF_HUB_OFFLINE"
    if isinstance(failure, HfHubHTTPError):
        return f"the request failed: {reason(failure)}"
    if isinstance(failure, ValueError):  # the library raises it for malformed repository names
        return f"there can be no such name: {reason(failure)}"
    if isinstance(failure, TimeoutError) and not str(failure):
        return f"no answer within {SECONDS:g} s, and the cache does not have it; check the spelling, or the network"
    return f"it was not reached ({reason(failure)}), and the cache does not have it; check the spelling, or the network"


def download_files(repository: str, patterns: Sequence[str]) -> Path:
    """Download the files that match, and return the local folder of the repository.

    Raises:
        UserError: The hub refuses them, or the download stops.
        OSError: The disk is full.
    """
    place = f"'{repository}' on the Hugging Face hub"
    try:
        return Path(snapshot_download(repository, allow_patterns=list(patterns)))
    except HfHubHTTPError as error:  # such as a gated repository, whose description is public
        raise UserError(f"{place}: {describe_failure(error)}") from error
    except OSError as error:
        if error.errno is not None:  # an error of this machine, such as a full disk
            raise
        raise UserError(f"{place}: the download stopped: {reason(error)}") from error


def cached_files(repository: str, patterns: Sequence[str]) -> Path | None:
    """Return the local folder of the repository without a question to the hub; None if the cache does not have it."""
    try:
        return Path(snapshot_download(repository, allow_patterns=list(patterns), local_files_only=True))
    except LocalEntryNotFoundError:
        return None
