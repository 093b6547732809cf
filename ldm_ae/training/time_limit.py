"""The end of a run, or of a phase, by its number of steps or by time (`training.max_minutes`)."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from ldm_ae.training.config import TrainingConfig


class TimeLimit:
    """The time that a phase has been trained. All processes see that of the first one, so that they end together.

    Args:
        config: `max_minutes` and `max_steps`; without `max_minutes`, nothing is measured.
        accelerator: The processes.
        clock: Monotonic clock in seconds.
    """

    def __init__(self, config: TrainingConfig, accelerator: Accelerator, clock: Callable[[], float] = time.monotonic):
        self._config, self._accelerator, self._clock = config, accelerator, clock
        self.seconds = 0.0
        """Seconds of training at the last `tick`, those of the processes that it resumes included."""
        self._began = clock()

    def start(self) -> None:
        """Continue to count, from `seconds` on."""
        self._began = self._clock() - self.seconds

    def tick(self) -> None:
        """Read the clock. Every process must call it."""
        if self._config.max_minutes is None:
            return
        self.seconds = self._clock() - self._began
        if self._accelerator.num_processes > 1:
            self.seconds = float(broadcast(torch.tensor([self.seconds], device=self._accelerator.device)))

    @property
    def minutes_left(self) -> float | None:
        """Minutes until the end at the last `tick`, at least 0; None without a limit."""
        minutes = self._config.max_minutes
        return None if minutes is None else max(minutes - self.seconds / 60, 0.0)

    def has_ended(self, steps: int) -> bool:
        """Return whether the phase was over at the last `tick`, after so many steps of it."""
        return has_ended(self._config, steps, self.seconds)


def has_ended(config: TrainingConfig, steps: int, seconds: float) -> bool:
    """Return whether a phase is over after so many steps and seconds of training."""
    by_time = config.max_minutes is not None and seconds >= 60 * config.max_minutes
    return by_time or steps >= config.max_steps


def known_length(config: TrainingConfig) -> int | None:
    """Return the number of steps of a phase; None where time may end it before."""
    return config.max_steps if config.max_minutes is None else None
