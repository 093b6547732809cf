"""A prior on disk: config.json, and prior.safetensors with the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from ldm_ae.core.errors import UserError, reason
from ldm_ae.core.registry import Registry
from ldm_ae.io.files import read_json, sha256, write_json, writing
from ldm_ae.io.tensor_files import read_tensors
from ldm_ae.priors.interface import CodePrior

CONFIG, WEIGHTS = "config.json", "prior.safetensors"
FORMAT = "ldm_ae code prior"
PRIORS: Registry[CodePrior] = Registry("ldm_ae.priors", CodePrior, "prior over codes")  # type: ignore[type-abstract]
"""Every prior by its name. Files can refer to a prior only by this name."""


class SavedPrior(NamedTuple):
    """The content of a folder."""

    prior: CodePrior
    """The prior in eval mode, without gradients."""
    model_hash: str
    """`models.model_hash` of the autoencoder whose codes the prior models."""
    name: str = ""
    """Origin of the prior, in words."""


def save_prior(prior: CodePrior, folder: str | Path, *, model_hash: str) -> None:
    """Write both files into `folder`, which must exist."""
    folder = Path(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in prior.state_dict().items()}
    with writing(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary)
    content = {
        "format": FORMAT,
        "class_name": type(prior).__name__,
        "init_args": prior.init_args,
        "model_hash": model_hash,
        "weights_sha256": sha256(folder / WEIGHTS),
    }
    write_json(folder / CONFIG, content)


def load_prior(folder: str | Path) -> SavedPrior:
    """Load the prior that `save_prior` wrote, on the CPU.

    Raises:
        UserError: No files, or damaged files.
    """
    config, weights = Path(folder) / CONFIG, Path(folder) / WEIGHTS
    try:
        content = read_json(config)
    except FileNotFoundError:
        raise UserError(f"{folder} is not a prior: it has no {CONFIG}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{config} cannot be read: {reason(error)}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{config} does not describe a prior over codes")
    tensors = read_tensors(weights)
    if sha256(weights) != content.get("weights_sha256"):
        raise UserError(f"{weights} is damaged: its hash differs from that in {CONFIG}")
    try:
        with torch.device("meta"):  # nothing is allocated before the weights are checked
            shapes = {name: tensor.shape for name, tensor in _build(content).state_dict().items()}
    except UserError as error:
        raise UserError(f"{config} does not describe a valid prior: {error}") from error
    if shapes != {name: tensor.shape for name, tensor in tensors.items()}:
        raise UserError(f"{weights} does not match {CONFIG}")
    prior = _build(content)
    prior.load_state_dict(tensors)
    return SavedPrior(prior.eval().requires_grad_(False), str(content.get("model_hash")), str(folder))


def _build(content: dict[str, Any]) -> CodePrior:
    name, arguments = str(content.get("class_name")), content.get("init_args")
    kind = PRIORS[name]
    if not isinstance(arguments, dict):
        raise UserError(f"prior {name} needs a mapping as its init_args")
    try:
        return kind(**arguments)
    except TypeError as error:
        raise UserError(f"{name} does not accept these arguments: {reason(error)}") from error
