"""Models on the Hugging Face hub: which names may be of one, and the local folder of what one holds."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from ldm_ae.core.errors import UserError, reason

PREFIX = "hf:"
"""Says that a name is of the hub, where a folder here has the owner's name."""
SUBFOLDERS = ("", "vae", "vqvae", "movq")
"""Where a repository has its autoencoder: at the top, or in a pipeline under the names that diffusers' classes give."""
_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*", re.ASCII)
_FILES = (".safetensors", ".ckpt", ".pth", ".pt", ".bin", ".json", ".yaml", ".yml", ".zip", ".tar")
_WEIGHTS = (
    "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model-*-of-*.safetensors",
)  # fmt: skip


def is_hub_name(name: str) -> bool:
    """Whether `name` can only be `owner/model` (or `hf:owner/model`) on the hub; a mistyped path is not looked up.

    It is not where `owner` is a folder here, or `model` ends as files do.
    """
    if name.startswith(PREFIX):
        return True
    owner = name.partition("/")[0]
    return bool(_NAME.fullmatch(name)) and not Path(owner).exists() and not name.lower().endswith(_FILES)


def hub_folder(name: str) -> Path:
    """The folder, in the hub's cache here, of the autoencoder that a repository holds; downloaded if it is not there.

    Only configurations and safetensors weights are downloaded.

    Raises:
        UserError: no such repository, one that is not open to this user, no network, or no autoencoder in it.
        OSError: the disk is full.
    """
    repository = name.removeprefix(PREFIX)
    root = _download(repository, [_below(folder, "config.json") for folder in SUBFOLDERS])
    for folder in SUBFOLDERS:
        if (root / folder / "config.json").is_file():
            root = _download(repository, [_below(folder, pattern) for pattern in ("config.json", *_WEIGHTS)])
            return root / folder
    raise UserError(
        f"'{repository}' on the Hugging Face hub is not a diffusers model or pipeline with an autoencoder: it has "
        f"neither config.json nor {SUBFOLDERS[1]}/config.json. Download a single file of weights for `ldm-ae import`"
    )


def _below(folder: str, pattern: str) -> str:
    return f"{folder}/{pattern}" if folder else pattern


def _download(repository: str, patterns: list[str]) -> Path:
    place = f"'{repository}' is not a path here, and on the Hugging Face hub"
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except GatedRepoError as error:  # is a RepositoryNotFoundError, too
        raise UserError(
            f"'{repository}' on the Hugging Face hub is gated: accept its terms on its page, then run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{place} there is no such repository, or it is private; check the spelling, or run `hf auth login`"
        ) from error
    except LocalEntryNotFoundError as error:  # is an HfHubHTTPError, too, before huggingface-hub 1.0
        if isinstance(error.__cause__, OfflineModeIsEnabled):
            raise UserError(
                f"{place} nothing is looked up, because HF_HUB_OFFLINE is set, nor is it in the cache; check the "
                "spelling of the path, or unset HF_HUB_OFFLINE"
            ) from error
        why = reason(error.__cause__ or error)
        raise UserError(
            f"{place} nothing can be looked up, because it was not reached ({why}); check the spelling of the path, or "
            "download the repository where there is a network and give its folder"
        ) from error
    except HfHubHTTPError as error:
        raise UserError(f"{place} the request failed: {reason(error)}") from error
    except ValueError as error:  # the library's, of names that no repository can have
        raise UserError(f"{place} there can be no such name: {reason(error)}") from error
    except OSError as error:
        if error.errno is not None:  # of this machine, such as a full disk
            raise
        raise UserError(f"{place} the download broke off: {reason(error)}") from error
