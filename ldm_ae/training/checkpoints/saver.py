"""Saving and restoring a run's state: the contents of a checkpoint, the time of copying, the writing process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from ldm_ae.core.background import BackgroundWriter
from ldm_ae.core.errors import UserError, reason
from ldm_ae.io.files import writing_folder
from ldm_ae.models import Autoencoder
from ldm_ae.models.loading.checkpoints import CHECKPOINTS
from ldm_ae.models.loading.weights import WEIGHTS
from ldm_ae.training.averages.averages import Averages
from ldm_ae.training.averages.snapshots import Snapshots
from ldm_ae.training.changes import check_identity, remedies
from ldm_ae.training.checkpoints.checkpoint import Checkpoints, layout_fits, link_model, load_networks
from ldm_ae.training.checkpoints.rng import rng_state, set_rng_state
from ldm_ae.training.checkpoints.snapshot import HostCopy, Snapshot
from ldm_ae.training.checkpoints.state import FIRST_STEP, PHASE, POWER_EMA, SECONDS, SKIPPED, read_state
from ldm_ae.training.config import TrainingConfig
from ldm_ae.training.monitoring.run_log import RunLog
from ldm_ae.training.optimizers import load_optimizer
from ldm_ae.training.phases import Phase
from ldm_ae.training.time_limit import has_ended

_CONTINUED = {"objective": "learned log-variance"}
"""What a network of a checkpoint is called, where that is not its name."""


class Progress(NamedTuple):
    """The progress of a run."""

    step: int
    """Number of updates done, those of the phases before included."""
    position: int
    """Number of samples of the phase's global stream that have been used."""
    best: dict[str, Any] | None
    """The best validation: `step`, `metric`, `value`, and `score`, the value with the sign that makes higher better."""
    skipped_steps: int
    """Number of steps skipped because a value was not finite."""
    first_step: int = 0
    """Number of updates of the phases before."""
    seconds: float = 0.0
    """Seconds that the phase has been trained; recorded for a run that time ends."""


class Saver:
    """Saving and restoring of one run.

    Args:
        folder: The run directory.
        accelerator: The main process writes, all processes read.
        config: Which checkpoints are kept, and whether they are written in the background.
        identity: The run's identity; a checkpoint with another one is refused.
        models: The autoencoder as `model` and the averaged one if it exists; not wrapped.
        others: Further networks by name, not wrapped; one whose state dict is empty has no file.
        optimizers: The autoencoder's, and the discriminator's if it exists.
        averages: The averages of the weights; None for a run without any.
        phase: The phase of the run.
        checkpoints: The checkpoints of the run, where the caller has them.
    """

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        config: TrainingConfig,
        identity: dict[str, Any],
        *,
        models: dict[str, Autoencoder],
        others: dict[str, nn.Module],
        optimizers: list[Optimizer],
        averages: Averages | None = None,
        phase: Phase | None = None,
        checkpoints: Checkpoints | None = None,
    ):
        self._phase = phase or Phase()
        self.folder, self._accelerator, self._identity = folder, accelerator, identity
        self._models, self._networks = models, others
        self._optimizers, self._averages = optimizers, averages
        self._power = None if averages is None else averages.power
        number = self._phase.number if self._phase.count > 1 else None
        self._snapshots = Snapshots(folder, in_background=config.background_saves, phase=number)
        self._checkpoints = checkpoints or Checkpoints(folder / CHECKPOINTS, keep=config.keep_checkpoints)
        self._in_background, self._batch_size = config.background_saves, config.batch_size
        self._config = config
        self._writer, self._host_copy = BackgroundWriter(), HostCopy()
        self._copied = Event()
        self._copied.set()

    def save(self, progress: Progress) -> None:
        """Write a checkpoint and the newest model beside it, and remove older checkpoints. Every process must call it.

        In the background it returns once everything that the next forward pass may change is copied. A thread of the
        main process does the remainder, beginning with the copy of everything that only an update changes:
        `before_update`. The previous checkpoint must have been written by then.

        Raises:
            RunError: This checkpoint, or the previous one in the background, could not be written.
        """
        generators = _gather(self._accelerator, rng_state())
        if not self._accelerator.is_main_process:
            return
        if self._averages is not None:
            self._averages.refresh(self._optimizers[0])
        scaler = self._accelerator.scaler
        counts = progress._asdict()
        first_step, seconds = counts.pop(FIRST_STEP), counts.pop(SECONDS)
        state = counts | {
            "identity": self._identity,
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "scaler": None if scaler is None else scaler.state_dict(),
            "rng": generators,
        }
        if self._power is not None:
            state[POWER_EMA] = self._power.state()
        if self._config.max_minutes is not None:
            state[SECONDS] = seconds
        if self._phase.count > 1:
            state |= {PHASE: self._phase.number, FIRST_STEP: first_step}
        networks = {name: module.state_dict() for name, module in self._networks.items()}
        snapshot = Snapshot(step=progress.step, models=self._models, networks=networks, state=state)
        best_step = None if progress.best is None else int(progress.best["step"])
        if self._in_background:
            self._writer.wait()
            finish_copy = self._host_copy.begin(snapshot)
            self._copied.clear()
            self._writer.submit(partial(self._copy_and_write, finish_copy, best_step))
        else:
            self._write(snapshot, best_step)

    def save_averages(self, step: int) -> None:
        """Write a snapshot of the power-function averages, if there are any.

        Raises:
            RunError: This snapshot, or the previous one in the background, could not be written.
        """
        if self._power is not None and self._accelerator.is_main_process:
            self._snapshots.save(self._power, step)

    def rewind(self, step: int) -> None:
        """Remove the snapshots of averages after `step`, which a run that resumes there writes again."""
        if self._accelerator.is_main_process:
            self._snapshots.rewind(step)

    def before_update(self) -> None:
        """Wait until a copy has been made of everything that an update is about to change."""
        self._copied.wait()

    def _copy_and_write(self, finish_copy: Callable[[], Snapshot], best_step: int | None) -> None:
        try:
            snapshot = finish_copy()
        finally:
            self._copied.set()
        self._write(snapshot, best_step)

    def _write(self, snapshot: Snapshot, best_step: int | None) -> None:
        checkpoint = self._checkpoints.write(snapshot, best_step=best_step)
        with writing_folder(self.folder / "model") as temporary:
            link_model(checkpoint, temporary)

    def check(self) -> None:
        """Raise the error of the background thread, if there was one."""
        self._writer.check()
        self._snapshots.writer.check()

    def wait(self) -> None:
        """Wait until all saved files are on the disk, in every process."""
        self._writer.wait()
        self._snapshots.writer.wait()
        self._accelerator.wait_for_everyone()

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Write everything saved in the background to the disk before an error leaves the block."""
        try:
            yield
        except BaseException:
            self._writer.settle()
            self._snapshots.writer.settle()
            raise

    def restore(self, log: RunLog) -> Progress | None:
        """Load the newest valid checkpoint, or what continues of the phase before; return None if there is none.

        Raises:
            UserError: It belongs to another run, no existing checkpoint is valid, or a part of it is missing.
        """
        newest, damaged = self._checkpoints.newest()
        for name, reasons in damaged.items():
            log.print_line(f"skipping invalid checkpoint {name}: {reasons[0]}")
        if newest is None:
            if damaged:
                name, reasons = next(iter(damaged.items()))
                raise UserError(
                    f"{self.folder} has no valid checkpoint ({name}: {reasons[0]}); restore one from a copy, or give "
                    "another --out to start a new run"
                )
            return None
        state = read_state(newest)
        if state.get(PHASE, 1) < self._phase.number:
            return self._continue(newest, state, log)
        check_identity(self.folder, state["identity"], self._identity, remedies(
            self.folder, global_batch=state["identity"].get("global_batch", self._identity["global_batch"]),
            batch_size=self._batch_size, processes=self._accelerator.num_processes,
        ))  # fmt: skip
        models: dict[str, nn.Module] = {
            f"{name}/{Path(WEIGHTS).stem}": model.net for name, model in self._models.items()
        }
        load_networks(newest, models | self._networks)
        before, now = len(state["rng"]), self._accelerator.num_processes
        try:
            for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
                load_optimizer(optimizer, saved)
            if self._power is not None:
                self._power.load_state(state[POWER_EMA])
            if self._accelerator.scaler is not None and state["scaler"] is not None:
                self._accelerator.scaler.load_state_dict(state["scaler"])
            if before == now:
                set_rng_state(state["rng"][self._accelerator.process_index])
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
            raise UserError(f"the state in {newest} does not fit this run: {reason(error)}") from error
        first_step, seconds = state.get(FIRST_STEP, 0), state.get(SECONDS, 0.0)
        if not has_ended(self._config, state["step"] - first_step, seconds):
            phase = "" if self._phase.count == 1 else f" in {self._phase.name}"
            log.print_line(f"resuming from {newest.name}{phase}")
        if before != now:
            log.print_line(f"{now} processes now, {before} before: the images' order, crops and noise are unchanged")
        return Progress(state["step"], state["position"], state["best"], state.get(SKIPPED, 0), first_step, seconds)

    def _continue(self, last: Path, state: dict[str, Any], log: RunLog) -> Progress:
        """Load what continues from the last checkpoint of the phase before: every network but the models that has the
        same name, class and layout, and the discriminator's optimizer with its network; everything else is new."""
        before = state["identity"]
        continued = []
        for name, network in self._networks.items():
            if before.get(name) == self._identity.get(name) and layout_fits(last, name, network):
                load_networks(last, {name: network})
                continued.append(_CONTINUED.get(name, name))
        same = before.get("discriminator_optimizer") == self._identity.get("discriminator_optimizer")
        if "discriminator" in continued and same:
            try:
                load_optimizer(self._optimizers[1], state["optimizers"][1])
                continued.append("discriminator's optimizer")
            except (KeyError, TypeError, ValueError, IndexError) as error:
                log.print_line(f"the optimizer of the discriminator begins anew: {reason(error)}")
        scaler = self._accelerator.scaler
        if scaler is not None and state["scaler"] is not None:
            scaler.load_state_dict(state["scaler"])
        timed = self._config.max_minutes is not None
        also = f"; the {' and the '.join(continued)} continue" if continued else ""
        log.print_line(
            f"{self._phase.name}: steps {state['step'] + 1} to {'at most ' * timed}"
            f"{state['step'] + self._config.max_steps}, from the model of {self._phase.start(self.folder)}{also}"
        )
        return Progress(state["step"], 0, None, state.get(SKIPPED, 0), state["step"])


def _gather(accelerator: Accelerator, value: Any) -> list[Any]:
    """Return the value of every process, in order."""
    if accelerator.num_processes == 1:
        return [value]
    gathered: list[Any] = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(gathered, value)
    return gathered
