"""Versions of the trained models that ship with the package, and where to get those that no longer do.

Weights can be replaced under the same name. A store records the hash of the model that made it, by which the table
finds the name and version. `NAME@VERSION` as MODEL names a version, `NAME` the installed one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ldm_ae.core.errors import UserError, printable
from ldm_ae.core.resources import shipped_models


@dataclass(frozen=True, kw_only=True)
class ShippedVersion:
    """One version of a shipped model."""

    name: str
    version: int
    """Counted from 1."""
    model_hash: str
    """`models.model_hash`, which stores and priors record."""
    weights_sha256: str
    """SHA-256 of the file of weights, in hex."""
    commit: str | None = None
    """A commit of the project that has it in `checkpoints/`; given when a later version takes its place."""

    @property
    def title(self) -> str:
        """The name by which MODEL denotes this version."""
        return f"{self.name}@{self.version}"

    @property
    def folder(self) -> Path | None:
        """The folder of this installation that has these weights; None if none has."""
        folder = shipped_models().get(self.name)
        if folder is None:
            return None
        files = folder.glob("*.safetensors")
        found = any(hashlib.sha256(file.read_bytes()).hexdigest() == self.weights_sha256 for file in files)
        return folder if found else None

    @property
    def is_installed(self) -> bool:
        """Whether this installation has these weights."""
        return self.folder is not None

    @property
    def advice(self) -> str:
        """How to use this version: its name as MODEL, or how to get its folder, in one line."""
        if self.is_installed:
            return f"give {self.title} as MODEL"
        if self.commit is None:
            return f"{self.title} is not in this installation: its folder {self.name} was changed; install ldm_ae again"
        return (
            f"{self.title} is not in this installation. In a clone of the project, `git archive --prefix={self.title}/ "
            f"{self.commit[:12]}:checkpoints/{self.name} | tar -x` writes its folder; give the folder's path as MODEL"
        )


VERSIONS: tuple[ShippedVersion, ...] = (
    ShippedVersion(
        name="kl-f8c4-small", version=1,
        model_hash="1bb251459a4b7e0c2965df4b942de111a73655610e31623b8634c168cb0be0bc",
        weights_sha256="2cd08f73c84f0d5a5fea22e1581defbe8d5d2b7a759e0a24dc57f483cd6d43ba",
        commit="71518e38205672e66dbc0cf573bb4835b11e26d5",
    ),
    ShippedVersion(
        name="kl-f8c4-small", version=2,
        model_hash="5e469b618928bfbae0d562708a443325740229e1493ef418db7d4abb1e9c1bd8",
        weights_sha256="e07465396718d5bf00fe028a93c4c07a742085affabb7cf59aff4515f4829aed",
    ),
    ShippedVersion(
        name="kl-f8c16-small", version=1,
        model_hash="46305c7dc0f89b8b8ced681ed097a9abb0cac6b414ae808deca2962af60adeb3",
        weights_sha256="22eaa40ea93f56cfad940ff2c6e0f75e7f48b3604306e0c3d71ae13c70506ae5",
    ),
    ShippedVersion(
        name="vq-f8-small", version=1,
        model_hash="323096f089db1a3035b043a1b8a2ab44301ee5c7302b40069f3f4d1fc6d1825f",
        weights_sha256="d060107bf1c992d45f759a519308ecbe115599e81cfa3f70451756f3cb6a4931",
        commit="71518e38205672e66dbc0cf573bb4835b11e26d5",
    ),
    ShippedVersion(
        name="vq-f8-small", version=2,
        model_hash="2441e004f7fc9ac7ead5cb3b1c977e422d7e10d42ee86f7723fd9907cd98bda5",
        weights_sha256="ec0d531473b3ba1d1d3772d8698520cb80137c2a3a26ca373ca955ee6e76615d",
        commit="fa4bed5d64f715aa668d0e19afdc9c4046daa97c",
    ),
    ShippedVersion(
        name="vq-f8-small", version=3,
        model_hash="5fbbe18b0f2dd67ff498cccf107ea32d51d40ecd6e25e8603118a92eb4a4a1d9",
        weights_sha256="2e7be7c9ebeb662e0a4bc5a956bd17b0480e4ca34db567ff10dcf8e76a4ed448",
    ),
)  # fmt: skip
"""All versions, in the order of their numbers."""


def version_named(text: str) -> ShippedVersion | None:
    """Return the version that `NAME@VERSION` denotes; None if NAME is not that of a shipped model.

    Raises:
        UserError: The model has no such version.
    """
    name, _, which = text.rpartition("@")
    versions = {str(version.version): version for version in VERSIONS if version.name == name}
    if not versions:
        return None
    if which not in versions:
        listed = [f"{number} (installed)" if each.is_installed else number for number, each in versions.items()]
        raise UserError(f"{name} has no version '{printable(which)}'; there are {', '.join(listed)}")
    return versions[which]


def is_shipped_name(text: str) -> bool:
    """Return whether a text is the name of an installed model, or of a version of any shipped one."""
    return text in shipped_models() or any(version.title == text for version in VERSIONS)


def version_of_hash(model_hash: str) -> ShippedVersion | None:
    """Return the version with this `model_hash`; None if it is not that of a shipped model."""
    return next((version for version in VERSIONS if version.model_hash == model_hash), None)


def other_model(made: str, recorded: str, given: str) -> UserError:
    """Return the error of a model that did not make something.

    Args:
        made: What was made and how, such as `STORE was made by`.
        recorded: Hash of the model that made it.
        given: Hash of the model that was given.
    """
    version = version_of_hash(recorded)
    if version is None:
        return UserError(f"{made} another model (hash {recorded[:12]}, this one's is {given[:12]}); give that model")
    return UserError(f"{made} {version.title}, this model has the hash {given[:12]}; {version.advice}")
