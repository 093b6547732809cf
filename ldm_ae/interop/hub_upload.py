"""Upload of a model folder to the Hugging Face hub, whose client this module imports: import it at use.

Nothing is tried again here; within an upload, the library repeats some requests itself. The small requests must be
answered within `SECONDS`; the upload within a time that suffices at `SLOWEST` bytes per second. A connection that hangs
therefore ends in a message.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

from ldm_ae.core.errors import UserError, printable, reason
from ldm_ae.io.hub import SECONDS as SECONDS_OF_A_QUESTION
from ldm_ae.io.hub import asked
from ldm_ae.io.hub_names import PREFIX, REPOSITORY

T = TypeVar("T")
SECONDS = 15.0
"""Time in which the hub must create a repository or a branch."""
SECONDS_OF_A_COMMIT, SLOWEST = 120.0, 50_000.0
"""Time for the commit, and bytes per second of the slowest upload that is waited for."""
_LOGIN = "run `hf auth login` with a token that has write access, or set HF_TOKEN to one"
_LOCAL = "--folder DIR writes the same files without an upload"


def check_repository(name: str) -> str:
    """Return `owner/name` without the prefix `hf:`.

    Raises:
        UserError: The name cannot be a repository's.
    """
    repository = name.removeprefix(PREFIX)
    if not REPOSITORY.fullmatch(repository) or ".." in repository or "--" in repository:
        raise UserError(f"'{printable(name)}' cannot be a repository on the Hugging Face hub; give OWNER/NAME")
    return repository


def check_upload(repository: str, *, private: bool) -> bool:
    """Ask the hub before any computation whether the upload can succeed, as far as one question tells.

    Returns:
        Whether the repository exists.

    Raises:
        UserError: There is no token, the hub does not accept it or does not answer, or the repository exists and is
            public where a private one is wanted.
    """
    if get_token() is None:
        raise UserError(f"an upload to the Hugging Face hub needs a token: {_LOGIN}; {_LOCAL}")
    api = HfApi()
    found = asked(lambda: api.model_info(repository, timeout=SECONDS_OF_A_QUESTION), SECONDS_OF_A_QUESTION + 1)
    if isinstance(found, RepositoryNotFoundError) and _status(found) != 401:
        return False
    if isinstance(found, Exception):
        raise _refusal(found, repository, SECONDS_OF_A_QUESTION) from found
    if private and not found.private:
        raise UserError(
            f"{repository} exists on the Hugging Face hub and is public; --private makes only new repositories "
            "private. Change its visibility in its settings, or give another name"
        )
    return True


def upload_model(
    folder: str | Path, repository: str, *, exists: bool, private: bool, revision: str | None, message: str
) -> str:
    """Upload all files of a folder in one commit, and return the address of the repository or of the branch.

    Args:
        folder: The folder.
        repository: `owner/name`.
        exists: Whether `check_upload` found the repository; else it is created.
        private: Create a private repository.
        revision: Branch, created if it does not exist; None is the main branch.
        message: First line of the commit message.

    Raises:
        UserError: The hub refuses, or is not reached.
    """
    api = HfApi()
    if not exists:
        _ask(lambda: api.create_repo(repository, private=private), repository, SECONDS)
    if revision is not None and not revision.startswith("refs/"):
        _ask(lambda: api.create_branch(repository, branch=revision, exist_ok=True), repository, SECONDS)
    size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    _ask(
        lambda: api.upload_folder(
            repo_id=repository, folder_path=str(folder), revision=revision, commit_message=message,
        ),
        repository, SECONDS_OF_A_COMMIT + size / SLOWEST,
    )  # fmt: skip
    return f"{api.endpoint}/{repository}" + (f"/tree/{revision}" if revision else "")


def _ask(call: Callable[[], T], repository: str, seconds: float) -> T:
    found: T | Exception
    try:
        found = asked(call, seconds)
    except RuntimeError as error:  # the class that wraps the failure of a large file, in the library and its storage
        found = error.__cause__ if isinstance(error.__cause__, Exception) else error
    if isinstance(found, Exception):
        raise _refusal(found, repository, seconds) from found
    return found


def _status(failure: Exception) -> int | None:
    return getattr(getattr(failure, "response", None), "status_code", None)


def _refusal(failure: Exception, repository: str, seconds: float) -> Exception:
    """Return the UserError for a failure; an error of this machine, such as a file that vanished, is returned as it
    is."""
    if isinstance(failure, OSError) and failure.errno is not None and failure.filename is not None:
        return failure
    return UserError(f"cannot upload to {repository} on the Hugging Face hub: {_words(failure, repository, seconds)}")


def _words(failure: Exception, repository: str, seconds: float) -> str:
    """Return why the hub did not take the model, and what to do."""
    owner = repository.partition("/")[0]
    if isinstance(failure, OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set; unset it, or {_LOCAL}"
    if isinstance(failure, TimeoutError) and not str(failure):
        return f"no answer within {seconds:.0f} s; check the network and run the command again, or {_LOCAL}"
    status = _status(failure)
    if not isinstance(failure, HfHubHTTPError) or status is None:
        if isinstance(failure, ValueError):  # the library raises it for metadata and names that the hub refuses
            return f"the hub refused the request: {_line(failure)}"
        return f"it was not reached ({reason(failure)}); check the network and run the command again, or {_LOCAL}"
    said = f" ({printable(failure.server_message)})" if failure.server_message else ""
    words = {
        401: f"the hub does not accept the token{said}; {_LOGIN}",
        403: f"the token may not write there{said}; {_LOGIN}, or give an owner that you may write to",
        404: f"there is no owner '{owner}', or no such repository that the token may see{said}; check the spelling",
        409: f"the repository changed meanwhile or has a conflict{said}; run the command again",
        429: f"too many requests{said}; wait, then run the command again",
    }  # fmt: skip
    if status >= 500:
        return f"the hub failed with status {status}{said}; run the command again later, or {_LOCAL}"
    return words.get(status, f"the hub refused the request with status {status}{said}")


def _line(failure: Exception) -> str:
    """Return an exception's lines as one."""
    return printable(" ".join(str(failure).split()))
