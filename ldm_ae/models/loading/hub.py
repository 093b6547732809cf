"""The local folder of a model on the Hugging Face hub, whose client this module imports: import it at use."""

from __future__ import annotations

from collections.abc import Callable
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
from ldm_ae.models.loading.hub_names import PREFIX, REPOSITORY, SUBFOLDERS
from ldm_ae.models.loading.weights import weight_files

T = TypeVar("T")
SECONDS = 4.0
"""Time in which the hub must answer. There is one try."""
_FILE, _SHARDED = ".safetensors", "diffusion_pytorch_model"
_MOST_NAMES = 4


def hub_folder(name: str, hint: str = "") -> Path:
    """Return the place, in the local hub cache, of a repository's autoencoder; download it if it is not there.

    The hub is asked once, and must answer within `SECONDS`; if it does not, the cache is used. Only configurations and
    the safetensors weights that are read are downloaded: of several variants one.

    Args:
        name: `hf:owner/model[/subfolder]`, `hf:owner/model/[subfolder/]file.safetensors`, or `owner/model`.
        hint: Text for the message about a name that may also be a mistyped path, such as the nearest path.

    Returns:
        The model folder, or the single file.

    Raises:
        UserError: No such repository, no access to it, no network, or no autoencoder in it.
        OSError: The disk is full.
    """
    owner, _, rest = name.removeprefix(PREFIX).partition("/")
    model, _, subfolder = rest.partition("/")
    repository, subfolder = f"{owner}/{model}", subfolder.rstrip("/")
    if not REPOSITORY.fullmatch(repository) or ".." in Path(subfolder).parts:
        raise UserError(f"'{name}' cannot be on the Hugging Face hub; give hf:OWNER/NAME or hf:OWNER/NAME/SUBFOLDER")
    folders = (subfolder,) if subfolder else SUBFOLDERS
    single = subfolder.endswith(_FILE)
    wanted = [subfolder] if single else [_below(folder, "config.json") for folder in folders]
    answer = _ask(repository)
    if isinstance(answer, Exception):
        try:
            root = Path(snapshot_download(repository, allow_patterns=wanted, local_files_only=True))
        except LocalEntryNotFoundError:
            where = f"{repository} on" if name.startswith(PREFIX) else f"{name} is not a path here ({hint}); on"
            raise UserError(f"no such model: {where} the Hugging Face hub: {_words(answer)}") from answer
    else:
        root = _download(repository, wanted)
    if single and (root / subfolder).is_file():
        return root / subfolder
    for folder in folders:
        if (root / folder / "config.json").is_file():
            if not isinstance(answer, Exception):
                found = weight_files(name.removeprefix(f"{folder}/") for name in answer if _is_in(name, folder))
                if found is not None:
                    root = _download(repository, [_below(folder, name) for name in ("config.json", *found.patterns)])
            return root / folder
    raise _nothing(repository, subfolder, [] if isinstance(answer, Exception) else answer)


def _nothing(repository: str, subfolder: str, names: list[str]) -> UserError:
    """Return the error about a repository in which there is no autoencoder at the place that was given."""
    files = [name for name in names if name.endswith(_FILE)]
    files = [f"{PREFIX}{repository}/{name}" for name in files if Path(name).stem.partition(".")[0] != _SHARDED]
    some = [*files[:_MOST_NAMES], *(["..."] if len(files) > _MOST_NAMES else [])]
    fix = f"; give a single file of it: {', '.join(some)}" if files else ""
    place = f"'{repository}' on the Hugging Face hub"
    if subfolder.endswith(_FILE):
        return UserError(f"{place} does not have {subfolder}{fix}")
    missing = f"no {subfolder}/config.json" if subfolder else f"neither config.json nor {SUBFOLDERS[1]}/config.json"
    return UserError(f"{place} is not a diffusers model or pipeline with an autoencoder: it has {missing}{fix}")


def _is_in(name: str, folder: str) -> bool:
    """Return whether a file of a repository lies in the folder itself."""
    return name.rpartition("/")[0] == folder


def _below(folder: str, pattern: str) -> str:
    return f"{folder}/{pattern}" if folder else pattern


def _ask(repository: str) -> Exception | list[str]:
    """Ask the hub once for the names of the repository's files; return them, or the failure."""
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


def _words(failure: Exception) -> str:
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


def _download(repository: str, patterns: list[str]) -> Path:
    place = f"'{repository}' on the Hugging Face hub"
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except HfHubHTTPError as error:  # such as a gated repository, whose description is public
        raise UserError(f"{place}: {_words(error)}") from error
    except OSError as error:
        if error.errno is not None:  # an error of this machine, such as a full disk
            raise
        raise UserError(f"{place}: the download stopped: {reason(error)}") from error
