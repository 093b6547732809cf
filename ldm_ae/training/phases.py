"""The phases of a run: parts with their own trainable parameters, objective, image size and length. Most runs have one.

Each phase is trained as a run of its own would be: its schedules, its average of the weights and the position in its
images start from 0, and the autoencoder's optimizer is new. It starts from the model of the phase before, its averaged
weights if it has some, which stays in `RUN/phases/N`. The discriminator, its optimizer, the learned log-variance or
scale of a likelihood, and the regularizer's own tensors continue if the phase before had the same (`Saver.restore`).
The steps in file names and logs are those of the whole run.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm_ae.core.errors import UserError
from ldm_ae.core.seeding import mix_seed
from ldm_ae.io.files import require_json
from ldm_ae.models import Autoencoder
from ldm_ae.models.loading.weights import WEIGHTS
from ldm_ae.models.scaling import SCALE, SCALED_ENCODER
from ldm_ae.training.checkpoints.checkpoint import load_networks
from ldm_ae.training.configuration.keys import of_phase
from ldm_ae.training.configuration.phases import Tree

FOLDER = "phases"
"""The folder of a run that holds the model of each finished phase but the last, whose model is the run's."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase of a run."""

    number: int = 1
    """Counts from 1."""
    count: int = 1
    """Number of phases of the run."""
    config: Any = None
    """Its complete configuration, which has the fields of `RunConfig`."""
    overrides: Tree = field(default_factory=dict)
    """The settings that differ from the rest of the recipe, as a tree."""

    @property
    def name(self) -> str:
        return f"phase {self.number} of {self.count}"

    @property
    def is_last(self) -> bool:
        return self.number == self.count

    @property
    def seed(self) -> int:
        """The seed of this phase; each phase draws its images in another order, with other crops and noise."""
        seed: int = self.config.seed
        return seed if self.number == 1 else mix_seed(seed, self.number) >> 32  # below 2^32, as NumPy requires

    def key(self, name: str) -> str:
        """Return the full name of a setting of this phase, for messages."""
        return name if self.count == 1 else of_phase(self.number, name)

    def start(self, folder: Path) -> Path | None:
        """Return the model folder that this phase starts from in a run directory; None in the first phase."""
        return None if self.number == 1 else phase_model(folder, self.number - 1)

    def result(self, folder: Path) -> Path:
        """Return the model folder that this phase writes in a run directory."""
        return folder / "model" if self.is_last else phase_model(folder, self.number)

    @contextmanager
    def named(self) -> Iterator[None]:
        """Give the errors of a phase its name, where a run has several."""
        try:
            yield
        except UserError as error:
            if self.count == 1:
                raise
            raise UserError(f"{self.name}: {error}") from error


def phase_model(folder: Path, number: int) -> Path:
    """Return the model folder of a finished phase in a run directory."""
    return folder / FOLDER / str(number)


def remove_results(folder: Path, number: int) -> None:
    """Remove the models in a run directory of this phase and of those after it, which is about to be trained."""
    for path in (folder / FOLDER).glob("*"):
        if path.name.isdigit() and int(path.name) >= number:
            shutil.rmtree(path)


def continue_from(model: Autoencoder, folder: Path) -> None:
    """Give a model the weights and the scale in a model folder of the same network.

    Raises:
        UserError: The folder is missing or does not fit.
    """
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder}, the model that this phase starts from, is missing; restore it from a copy")
    load_networks(folder, {Path(WEIGHTS).stem: model.net})
    config = require_json(folder / "config.json")
    model.net.register_to_config(**{key: config[key] for key in (*SCALE, SCALED_ENCODER) if key in config})
