"""How the weight of a term rises with the steps, so that a decoder learns to use latents before they cost anything.

Source: Bowman et al., arXiv 1511.06349, for the linear rise; Fu et al., Cyclical Annealing Schedule, arXiv 1903.10145,
equation 6, for its repetition: with M cycles in T steps and R = 0.5, `cycle_steps` is T/M and `warmup_steps` T/2M.
"""

from __future__ import annotations

from dataclasses import dataclass

from ldm_ae.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class WeightSchedule:
    """A weight that rises linearly from 0, once or in cycles."""

    warmup_steps: int
    """Number of steps over which the weight rises from 0."""
    cycle_steps: int | None = None
    """Number of steps after which it starts from 0 again; null for never."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 1:
            raise UserError(f"warmup_steps of a weight is {self.warmup_steps}; it must be at least 1")
        if self.cycle_steps is not None and self.cycle_steps < self.warmup_steps:
            raise UserError(
                f"cycle_steps of a weight is {self.cycle_steps}; it must be at least its warmup_steps, "
                f"{self.warmup_steps}"
            )

    def factor(self, step: int) -> float:
        """Return the factor of the weight after `step` updates, from 0 to 1."""
        since = step if self.cycle_steps is None else step % self.cycle_steps
        return min(since / self.warmup_steps, 1.0)
