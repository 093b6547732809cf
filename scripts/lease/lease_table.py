"""The table of a lease: its benchmarks and its phases of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ldm_ae.core.errors import UserError

TABLE = Path(__file__).with_name("gpu_lease.yaml")
"""The table of the shipped models."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A script of scripts/benchmarks."""

    name: str
    minutes: float
    """The script is stopped after this time."""
    arguments: Sequence[str] = ()
    rehearsal: Sequence[str] | None = None
    """Arguments in a rehearsal; None for a script that needs an accelerator."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A training run of a recipe."""

    name: str
    recipe: str
    share: float
    """Its part of the time, in any unit."""
    after: str | None = None
    """The phase whose model it starts from."""
    cooldown: float = 0.0
    """Fraction of its time over which the learning rate falls."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Keys of the recipe, such as `training.batch_size`, and their values on the GPU."""
    rehearsal: dict[str, Any] = field(default_factory=dict)
    """The same for a rehearsal."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a lease does, in this order."""

    benchmarks: list[Benchmark]
    phases: list[Phase]
    start_seconds: float
    """Seconds that a phase takes beside its training, until one was measured."""
    closing_seconds: float
    """Seconds that are kept for the results."""
    compile_from_minutes: float
    """Phases of at least as many minutes are compiled."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of all phases, which those of a phase override."""
    rehearsal: dict[str, Any] = field(default_factory=dict)
    """The same for a rehearsal."""

    @classmethod
    def read(cls, path: Path) -> Table:
        """Read a table.

        Raises:
            UserError: It is not a table, or a phase starts from one that is not above it.
        """
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
            found["benchmarks"] = [Benchmark(**entry) for entry in found["benchmarks"]]
            found["phases"] = [Phase(**entry) for entry in found["phases"]]
            table = cls(**found)
        except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
            raise UserError(f"{path} is not the table of a lease: {error}; see {TABLE}") from None
        names: list[str | None] = [None]
        for phase in table.phases:
            if phase.name in names or phase.after not in names:
                raise UserError(
                    f"{path}, phase {phase.name}: its name must be new, and `after` the name of a phase above it"
                )
            if phase.share <= 0 or not 0 <= phase.cooldown <= 1:
                raise UserError(f"{path}, phase {phase.name}: share must be above 0, and cooldown in [0, 1]")
            names.append(phase.name)
        return table
