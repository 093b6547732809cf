"""The configuration that a run directory records, and what a resumed run changes of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from ldm_ae.core.errors import UserError, reason
from ldm_ae.io.files import writing
from ldm_ae.training.changes import CONFIG, changed_settings, saved_config
from ldm_ae.training.configuration.parsing import saved_text
from ldm_ae.training.configuration.phases import differences, each_phase, full_tree
from ldm_ae.training.phases import Phase

if TYPE_CHECKING:
    from ldm_ae.training.trainer import Trainer


class Record:
    """`config.yaml` before a command and after it.

    Finished phases stay as they were trained, whatever this command says of them.

    Args:
        folder: The run directory.
        config: The configuration of this command.
        parser: The parser that read it.
        phases: The phases of the run.
        current: The phase that the run is in.
    """

    def __init__(
        self, folder: Path, config: Namespace, parser: ArgumentParser, phases: Sequence[Phase], current: Phase
    ):
        self._path, self._phases, self._current = folder / CONFIG, phases, current
        self.before: dict[str, Any] | None = saved_config(folder)
        """The configuration that the run was last started with; None for a new run."""
        self._text = saved_text(config, parser)
        self.now: dict[str, Any] = yaml.safe_load(self._text)
        """The configuration of this command, as `saved_config` would read it back."""
        if self.before is not None and current.number > 1:
            recorded = config.clone()
            finished = self._finished(config, parser)
            recorded.phases = [*finished, *config.phases[len(finished) :]]
            self._text = saved_text(recorded, parser)

    def _finished(self, config: Namespace, parser: ArgumentParser) -> list[dict[str, Any]]:
        """Return the finished phases as the run records them: their differences from the recipe of this command."""
        assert self.before is not None
        recipe = config.clone()
        recipe.phases = []
        found = []
        for tree in each_phase(self.before)[: self._current.number - 1]:
            try:
                phase = parser.parse_object(tree)
            except (ArgumentError, TypeError, ValueError) as error:
                raise UserError(f"{self._path} is not the configuration of a run: {reason(error)}") from error
            found.append(differences(full_tree(recipe), full_tree(phase)))
        return found

    def changes(self, number: int) -> dict[str, tuple[str, str]]:
        """Return the old and new JSON value of each changed setting of a phase; none for a phase that is new."""
        before, now = each_phase(self.before or {}), each_phase(self.now)
        if self.before is None or number > len(before):
            return {}
        return changed_settings(before[number - 1], now[number - 1])

    def write(self, trainer: Trainer) -> None:
        """Write `config.yaml` and, of a run that resumes, log the changed settings."""
        if trainer.run_step:
            for phase in self._phases:
                changed = {phase.key(name): values for name, values in self.changes(phase.number).items()}
                if phase.number >= self._current.number:
                    trainer.log.changes(trainer.run_step, changed)
                elif changed:
                    names = ", ".join(changed)
                    trainer.log.print_line(f"phase {phase.number} is finished, so these have no effect: {names}")
        with writing(self._path) as temporary:
            temporary.write_text(self._text, encoding="utf-8")
