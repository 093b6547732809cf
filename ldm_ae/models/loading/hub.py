"""Models on the Hugging Face hub: which names can be hub names, and the local folder of a repository's model."""

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
"""Prefix of a hub name, needed where a local folder has the owner's name."""
SUBFOLDERS = ("", "vae", "vqvae", "movq")
"""Folders of a repository that may hold its autoencoder: the top, or a pipeline's part, as diffusers names it."""
_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*", re.ASCII)
_FILES = (".safetensors", ".ckpt", ".pth", ".pt", ".bin", ".json", ".yaml", ".yml", ".zip", ".tar")
_WEIGHTS = (
    "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model-*-of-*.safetensors",
)  # fmt: skip


def is_hub_name(name: str) -> bool:
    """Return whether `name` can only be `owner/model` (or `hf:owner/model`) on the hub, so that a mistyped path is not
    looked up.

    The result is False where `owner` is a local folder or `model` has a file's suffix.
    """
    if name.startswith(PREFIX):
        return True
    owner = name.partition("/")[0]
    return bool(_NAME.fullmatch(name)) and not Path(owner).exists() and not name.lower().endswith(_FILES)


def hub_folder(name: str) -> Path:
    """Return the folder, in the local hub cache, of a repository's autoencoder; download it if it is not there.

    Only configurations and safetensors weights are downloaded.

    Raises:
        UserError: No such repository, no access to it, no network, or no autoencoder in it.
        OSError: The disk is full.
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
    place = f"'{repository}' is not an existing path, and on the Hugging Face hub"
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except GatedRepoError as error:  # a subclass of RepositoryNotFoundError
        raise UserError(
            f"'{repository}' on the Hugging Face hub is gated: accept its terms on its page, then run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{place} there is no such repository, or it is private; check the spelling, or run `hf auth login`"
        ) from error
    except LocalEntryNotFoundError as error:  # a subclass of HfHubHTTPError before huggingface-hub 1.0
        if isinstance(error.__cause__, OfflineModeIsEnabled):
            raise UserError(
                f"{place} it cannot be looked up, because HF_HUB_OFFLINE is set and it is not in the cache; check "
                "the spelling of the path, or unset HF_HUB_OFFLINE"
            ) from error
        why = reason(error.__cause__ or error)
        raise UserError(
            f"{place} it cannot be looked up, because the hub cannot be reached ({why}); check the spelling of the "
            "path, or download the repository on a machine with a network and give its folder"
        ) from error
    except HfHubHTTPError as error:
        raise UserError(f"{place} the request failed: {reason(error)}") from error
    except ValueError as error:  # the library raises it for malformed repository names
        raise UserError(f"{place} the name is not valid: {reason(error)}") from error
    except OSError as error:
        if error.errno is not None:  # an error of this machine, such as a full disk
            raise
        raise UserError(f"{place} the download failed: {reason(error)}") from error
