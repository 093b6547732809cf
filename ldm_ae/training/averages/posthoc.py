"""The average of any length from the stored averages of a run, after or during its training."""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.models import Autoencoder, load_autoencoder
from ldm_ae.training.averages.profiles import TOLERANCE, Combination, combine, reachable
from ldm_ae.training.averages.snapshots import Snapshot, stored_snapshots, verify

_log = logging.getLogger("ldm_ae")
_NEGLIGIBLE = 1e-8
"""Factors below this are below the rounding of float32, and their snapshots are not read."""


class StoredAverages:
    """The stored averages of a run, or of the newest phase of one. Every combination is of the newest snapshot's step.

    Args:
        run: A run directory; the run may have finished, be interrupted or be training.

    Raises:
        UserError: It has no snapshots, or no model yet.
    """

    def __init__(self, run: str | Path):
        self.run = Path(run)
        self._snapshots, invalid, self.phase = stored_snapshots(self.run)
        for path, why in invalid.items():
            _log.warning("skipping invalid snapshot %s: %s", path, why)
        self.step = self._snapshots[-1].step
        self.lengths = self._snapshots[-1].lengths
        self._steps = [snapshot.step for snapshot in self._snapshots]
        if not (self.run / "model").is_dir():
            raise UserError(f"{run} has no model yet; wait for its first checkpoint, or rerun its command")
        self._verified: set[Path] = set()

    @cached_property
    def range(self) -> tuple[float, float]:
        """The shortest and the longest length that the snapshots allow."""
        return reachable(self._steps, self.lengths, self.step)

    def combination(self, length: float) -> Combination:
        """Return the factors of a length.

        Raises:
            UserError: It cannot be combined from these snapshots with an error of at most `TOLERANCE`.
        """
        shortest, longest = self.range
        if shortest <= length <= longest:
            (found,) = combine(self._steps, self.lengths, self.step, [length])
            if found.error <= TOLERANCE:
                return found
        raise UserError(
            f"an average of length {length:g} cannot be combined from the {len(self._snapshots)} snapshots of "
            f"{self.run}: expected a length from {shortest:.3f} to {longest:.3f}. More snapshots "
            "(training.power_ema_every) widen this range"
        )

    def lengths_to_compare(self, count: int = 12) -> list[float]:
        """Return lengths over the whole range at equal ratios, rounded to two digits, and the stored ones."""
        shortest, longest = self.range
        rounded = [float(f"{length:.2g}") for length in np.geomspace(shortest, longest, count)]
        return sorted({*(length for length in rounded if shortest <= length <= longest), *self.lengths})

    def model(self, length: float) -> Autoencoder:
        """Return the model with the average of a length, in float32 on the CPU.

        Raises:
            UserError: See `combination`; a snapshot is damaged, or belongs to another network.
        """
        averaged = self.weights(length)
        buffers = self._snapshots[-1].buffers()
        model = load_autoencoder(self.run)
        own = model.net.state_dict()
        for name, tensor in (averaged | buffers).items():
            if name not in own or own[name].shape != tensor.shape:
                raise UserError(f"the snapshots of {self.run} do not fit its model: it has no {name} of this shape")
            own[name].copy_(tensor)
        return model

    def weights(self, length: float) -> dict[str, Tensor]:
        """Return the averaged parameters of a length by name, float32; sums are taken in float64.

        Raises:
            UserError: See `combination`; a snapshot is damaged.
        """
        factors = self.combination(length).factors
        total: dict[str, Tensor] = {}
        for snapshot, row in zip(self._snapshots, factors, strict=True):
            for stored, factor in zip(self.lengths, row.tolist(), strict=True):
                if abs(factor) >= _NEGLIGIBLE:
                    self._add(total, snapshot, stored, factor)
        return {name: tensor.float() for name, tensor in total.items()}

    def _add(self, total: dict[str, Tensor], snapshot: Snapshot, length: float, factor: float) -> None:
        if snapshot.path not in self._verified:
            verify(snapshot)
            self._verified.add(snapshot.path)
        for name, tensor in snapshot.read(length).items():
            if name in total and total[name].shape != tensor.shape:
                raise UserError(f"{snapshot.path} does not fit the other snapshots: {name} has another shape")
            if name not in total:
                total[name] = torch.zeros(tensor.shape, dtype=torch.float64)
            total[name].add_(tensor.double(), alpha=factor)
