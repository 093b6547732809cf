"""What a card is written from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ldm_ae.models import Autoencoder


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number of an evaluation."""

    key: str
    """Name in metrics.json."""
    label: str
    """Display name with the unit."""
    value: float
    direction: str = ""
    """The better values: `higher`, `lower`, or empty where neither is better."""
    explanation: str = ""
    baseline: float | None = None
    """The value of the bicubic thumbnail."""
    caution: str = ""
    """Why the score cannot be trusted; empty where it can."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """An evaluation of the model."""

    scores: list[Score]
    images: int
    source: str
    """Name of the images, without private paths."""
    dataset: str | None
    """Name of the data set on the hub, if the images are from there."""
    protocol: Mapping[str, Any]
    """The protocol of metrics.json."""
    activations: str = ""
    """Whether the model is safe in fp16, in words."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The training run of a model."""

    config: Mapping[str, Any]
    """The run's configuration without private paths."""
    removed: list[str]
    """Keys whose values were private paths."""
    source: str
    """Name of the training images, without private paths."""
    dataset: str | None
    """Name of the data set on the hub, if the images are from there."""
    phases: Sequence[Mapping[str, Any]] = ()
    """What each phase of the run sets otherwise than `config`, by full keys; none of a run without phases."""
    step: int | None = None
    """Updates of these weights."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """Identity of the run, as its checkpoints record it."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Versions and device of the run."""

    def values(self, key: str) -> list[Any]:
        """Return the values that a setting such as `training.max_steps` has in the phases; None where it is absent."""
        found: Any = self.config
        for name in key.split("."):
            found = found.get(name) if isinstance(found, Mapping) else None
        return [phase.get(key, found) for phase in self.phases or [{}]]

    @property
    def planned(self) -> int | None:
        """The steps of all phases; None if the configuration does not state them, or time ends a phase."""
        steps, minutes = self.values("training.max_steps"), self.values("training.max_minutes")
        stated = all(type(count) is int for count in steps) and all(limit is None for limit in minutes)
        return sum(steps) if stated else None


@dataclass(frozen=True, kw_only=True)
class Card:
    """All facts of a card."""

    repository: str
    """`owner/name`."""
    model: Autoencoder
    """The model as the folder has it."""
    licence: str | None = None
    """The hub's identifier."""
    base_model: str | None = None
    """Name on the hub, or of a shipped model, from which training started or whose weights these are."""
    trained: Trained | None = None
    measured: Measured | None = None
    pictures: int = 0
    """Number of images in `PICTURES`."""
    pictured: str = ""
    """Name of the images of which these are the first, without private paths."""
    error_gain: float = 1.0
    """Factor of the errors in `PICTURES`."""
    scale_images: int | None = None
    """Number of images on which the scale was measured for this export; None where it was not."""
    weights: str = "fp32"
    """Type of the weights in the file."""
