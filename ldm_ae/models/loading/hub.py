"""The local folder of a model on the Hugging Face hub. It imports the hub's client: import it at use."""

from __future__ import annotations

from pathlib import Path

from ldm_ae.core.errors import UserError
from ldm_ae.io.hub import cached_files, describe_failure, download_files, file_names
from ldm_ae.io.hub_names import PREFIX, REPOSITORY
from ldm_ae.models.loading.places import SUBFOLDERS
from ldm_ae.models.loading.weights import weight_files

_FILE, _SHARDED = ".safetensors", "diffusion_pytorch_model"
_MOST_NAMES = 4


def hub_folder(name: str, hint: str = "") -> Path:
    """Return the place, in the local hub cache, of a repository's autoencoder; download it if it is not there.

    The hub is asked once, and must answer within `ldm_ae.io.hub.SECONDS`; if it does not, the cache is used. Only
    configurations and the safetensors weights that are read are downloaded: of several variants one.

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
    answer = file_names(repository)
    if isinstance(answer, Exception):
        cached = cached_files(repository, wanted)
        if cached is None:
            where = f"{repository} on" if name.startswith(PREFIX) else f"{name} is not a path here ({hint}); on"
            raise UserError(f"no such model: {where} the Hugging Face hub: {describe_failure(answer)}") from answer
        root = cached
    else:
        root = download_files(repository, wanted)
    if single and (root / subfolder).is_file():
        return root / subfolder
    for folder in folders:
        if (root / folder / "config.json").is_file():
            if not isinstance(answer, Exception):
                found = weight_files(name.removeprefix(f"{folder}/") for name in answer if _is_in(name, folder))
                if found is not None:
                    root = download_files(
                        repository, [_below(folder, name) for name in ("config.json", *found.patterns)]
                    )
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
