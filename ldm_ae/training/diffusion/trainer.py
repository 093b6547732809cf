"""The loop of every diffusion run: resuming, logging, previews, checkpoints, the result.

    DIR/
        checkpoints/step-00001000/      model, ema, state, MANIFEST.json: see `training/checkpoints/checkpoint.py`
        samples/  metrics.jsonl  history.jsonl  logs/
        RESULT/                         what the run's task makes of the averaged weights

Batch, noise, times and dropped labels of a step are functions of (seed, step, process) alone. A checkpoint therefore
holds the weights, their average, the optimizer and the step, and a resumed run equals an uninterrupted one. Runs on
latents of different shapes have the same order of images and the same times; their noise differs in shape only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image
from torch import Tensor, nn

from ldm_ae.core.errors import Stopped, UserError, reason
from ldm_ae.core.seeding import derive_seed
from ldm_ae.io.files import writing_folder
from ldm_ae.training.changes import check_identity
from ldm_ae.training.checkpoints.checkpoint import Checkpoints, load_networks
from ldm_ae.training.checkpoints.snapshot import AVERAGED, Snapshot
from ldm_ae.training.checkpoints.state import read_state
from ldm_ae.training.diffusion.config import DiffusionConfig
from ldm_ae.training.diffusion.networks import training_loss
from ldm_ae.training.ema import EMA
from ldm_ae.training.monitoring.run_log import RunLog, Window, finished_step
from ldm_ae.training.monitoring.signals import Signals, agreed_signal
from ldm_ae.training.optimizers import load_optimizer

MAX_GRAD_NORM = 1.0


class Task(Protocol):
    """What a run learns, and what it leaves."""

    result: str
    """Name of the result's folder in the run directory."""

    @property
    def global_batch(self) -> int:
        """Latents of a step over all processes."""

    def build_network(self) -> nn.Module:
        """Return a new network; random weights come from torch's own generator, which the trainer seeds."""

    def batch(self, step: int) -> dict[str, Any]:
        """Return `latents` (B, C, h, w) float32, scaled, and `label` (B,) int64 of step number `step`, on the CPU."""

    def labels(self, label: Tensor, generator: torch.Generator) -> Tensor | None:
        """Return the classes that the network gets, (B,) int64, from those of a batch; None for a network without."""

    def identity(self) -> dict[str, Any]:
        """Return JSON values that a resumed run must share."""

    def export(self, network: nn.Module, folder: Path) -> None:
        """Write the result from the averaged network into a folder, which exists."""


class DiffusionTrainer:
    """The training of one diffusion model.

    Args:
        folder: The run directory, which exists.
        accelerator: Every process of it makes a trainer.
        config: The options.
        task: The latents, the network and the result.
        preview: Returns an image of what the averaged network samples from the same noise each time, which is saved
            every `config.sample_every` steps; None for no previews.
        report: Called with the number of steps done after each; the terminal then shows nothing of the run.
    """

    def __init__(
        self, folder: Path, accelerator: Accelerator, config: DiffusionConfig, task: Task,
        *, preview: Callable[[nn.Module], Image.Image] | None = None, report: Callable[[int], None] | None = None,
    ):  # fmt: skip
        self.folder, self.accelerator, self.config, self.task = folder, accelerator, config, task
        self._preview, self._report = preview, report
        set_seed(config.seed)
        self.net = task.build_network()
        self.ema = EMA(self.net.to(accelerator.device), config.ema_decay)
        self._optimizer = torch.optim.AdamW(self.net.parameters(), lr=config.learning_rate)
        self._model, self._stepper = accelerator.prepare(self.net, self._optimizer)
        self.step = 0
        self.log = RunLog(folder, accelerator, config.steps, task.global_batch, shown=report is None)
        self._checkpoints = Checkpoints(folder / "checkpoints", keep=config.keep_checkpoints)
        self.identity: dict[str, Any] = task.identity() | {
            "global_batch": task.global_batch,
            **{name: getattr(config, name) for name in ("model", "objective", "width", "depth", "seed")},
        }

    # ---------------------------------------------------------------------------------------------------- the loop

    def fit(self) -> None:
        """Train up to `steps` and write the result; call `resume` before.

        Raises:
            Stopped: A signal ended the run; it is saved.
            RunError: A checkpoint could not be written: a value is not finite (DivergedError), or the disk is full.
        """
        config, log = self.config, self.log
        log.rewind(self.step)
        window = Window()
        self._model.train()
        with log.progress, Signals() as signals:
            log.advance(self.step)
            while self.step < config.steps:
                started = time.perf_counter()
                logs = self._train_step()
                window.add(logs, self.task.global_batch, time.perf_counter() - started)
                log.advance(self.step)
                if self._report is not None:
                    self._report(self.step)
                last = self.step == config.steps
                if last or self.step % config.log_every == 0:
                    self._log(window.means(self.accelerator))
                if self._preview and config.sample_every and (last or self.step % config.sample_every == 0):
                    self._save_preview(self._preview)
                stop = agreed_signal(self.accelerator, signals.received)
                if last or stop or self.step % config.checkpoint_every == 0:
                    self._save()
                if stop and not last:
                    log.print_line(f"saved at step {self.step} and stopped; rerun the same command to resume")
                    raise Stopped(stop)
        self._export()

    def _train_step(self) -> dict[str, Tensor]:
        """Run one update, and return the scalars to log."""
        device, accelerator = self.accelerator.device, self.accelerator
        seed = derive_seed("diffusion", self.config.seed, self.step, accelerator.process_index)
        generator = torch.Generator(device).manual_seed(seed)
        batch = self.task.batch(self.step)
        labels = self.task.labels(batch["label"].to(device), generator)
        with accelerator.autocast():
            loss = training_loss(
                self._model, batch["latents"].to(device), labels, self.config.objective, generator=generator
            )
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(self._model.parameters(), MAX_GRAD_NORM)
        self._stepper.step()
        self._stepper.zero_grad()
        self.ema.update(self.net, self.step)
        self.step += 1
        return {"loss": loss.detach(), "grad_norm": torch.as_tensor(norm)}

    def _log(self, values: dict[str, float]) -> None:
        self.log.metrics(self.step, values | {"learning_rate": self.config.learning_rate}, kind="train")
        self.log.print_line(f"step {self.step}: loss {values['loss']:.4f}, {values['images_per_second']:.1f} latents/s")

    def _save_preview(self, preview: Callable[[nn.Module], Image.Image]) -> None:
        if self.accelerator.is_main_process:
            self.log.image(self.step, f"step-{self.step:08d}.png", "samples", preview(self.ema.model))
        self.accelerator.wait_for_everyone()

    # ------------------------------------------------------------------------------------------ saving and resuming

    def _save(self) -> None:
        """Write a checkpoint, and remove older ones."""
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            position = self.step * self.task.global_batch
            state = {
                "step": self.step, "position": position, "best": None, "skipped_steps": 0, "first_step": 0,
                "identity": self.identity, "optimizers": [self._optimizer.state_dict()], "rng": [],
                "scaler": None if scaler is None else scaler.state_dict(),
            }  # fmt: skip
            networks = {name: network.state_dict() for name, network in self._networks().items()}
            self._checkpoints.write(Snapshot(step=self.step, models={}, networks=networks, state=state), best_step=None)
        self.accelerator.wait_for_everyone()

    def _networks(self) -> dict[str, nn.Module]:
        return {"model": self.net, AVERAGED: self.ema.model}

    def resume(self) -> None:
        """Load the newest valid checkpoint, if there is one; nothing is written.

        Raises:
            UserError: It belongs to another run, has more steps than requested, or none of those there is valid.
        """
        newest, damaged = self._checkpoints.newest()
        for name, reasons in damaged.items():
            self.log.print_line(f"skipping invalid checkpoint {name}: {reasons[0]}")
        if newest is None:
            if damaged:
                raise UserError(
                    f"{self.folder} has no valid checkpoint; restore one from a copy, or give another --out to start "
                    "a new run"
                )
            return
        state = read_state(newest)
        step, identity = state["step"], state["identity"]
        usual = f"keep batch_size x processes at {identity.get('global_batch')}, or give another --out"
        check_identity(self.folder, identity, self.identity, {"global_batch": usual})
        load_networks(newest, self._networks())
        try:
            load_optimizer(self._optimizer, *state["optimizers"])
            if self.accelerator.scaler is not None and state["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(f"the state in {newest} does not fit this run: {reason(error)}") from error
        if step > self.config.steps:
            raise UserError(
                f"{self.folder} is at step {step}, past --steps {self.config.steps}; raise --steps, or give another "
                "--out"
            )
        self.step = step
        if step < self.config.steps:
            self.log.print_line(f"resuming from {newest.name}")

    def is_finished(self) -> bool:
        """Return whether the run has all its steps and its result has been written; call it after `resume`."""
        written = (self.folder / self.task.result).is_dir()
        return written and self.step == self.config.steps == finished_step(self.folder)

    def _export(self) -> None:
        if self.accelerator.is_main_process:
            with writing_folder(self.folder / self.task.result) as temporary:
                self.task.export(self.ema.model, temporary)
            self.log.finished(self.step)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
