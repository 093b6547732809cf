"""The lines that a run prints before its first step and after its last one.

The first lines need the parsed configuration alone, so that they stand on the terminal before slow work begins.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from torch import nn

from ldm_ae.core.processes import Processes
from ldm_ae.core.terminal import duration
from ldm_ae.data.buckets import Buckets
from ldm_ae.data.config import DataConfig
from ldm_ae.models.loading.checkpoints import BEST, CHECKPOINTS
from ldm_ae.training.averages.power import PowerEMA
from ldm_ae.training.averages.snapshots import AVERAGES
from ldm_ae.training.config import TrainingConfig
from ldm_ae.training.configuration.phases import settings
from ldm_ae.training.monitoring.trackers import (
    TENSORBOARD,
    WANDB,
    chosen_trackers,
    run_name,
    tensorboard_folder,
)
from ldm_ae.training.optimizers import describe_groups
from ldm_ae.training.phases import Phase

if TYPE_CHECKING:
    from ldm_ae.training.trainer import Trainer

_WIDTH = 11
_IN_STEPS = ("training.max_steps", "training.max_minutes", "training.batch_size", "training.accumulation")
_SIZES_SHOWN = 8


class Banner:
    """The start banner, printed by the first process as its parts become available.

    Args:
        folder: The run directory.
        phases: The phases of the run, of which nothing is built.
    """

    def __init__(self, folder: Path, phases: Sequence[Phase]):
        self._folder, self._phases = folder, phases
        processes = Processes.from_environment()
        self._processes = processes.count
        self._console = Console(stderr=True, quiet=processes.rank > 0, highlight=False)

    def print_plan(self) -> None:
        """Print what the configuration states: run directory, images, steps, logs, trackers."""
        self._line("run", f"{self._folder} ({'exists' if (self._folder / CHECKPOINTS).is_dir() else 'new'})")
        first = self._phases[0].config
        self._line("images", _images_line(first.data))
        if len(self._phases) > 1:
            settings_of_each = [phase.config.training for phase in self._phases]
            total = sum(training.max_steps for training in settings_of_each)
            at_most = "at most " * any(training.max_minutes is not None for training in settings_of_each)
            self._line("steps", f"{at_most}{total} in {len(self._phases)} phases")
        for phase in self._phases:
            self._line("steps" if phase.count == 1 else f"phase {phase.number}", _steps_line(phase, self._processes))
        training = first.training
        self._line(
            "writes", f"metrics.jsonl every {training.log_every} steps, samples/ every {training.sample_every}, "
            f"validation every {training.validate_every}, checkpoints/ every {training.checkpoint_every}"
        )  # fmt: skip
        self._line("trackers", trackers_line(training, self._folder))

    def print_precision(self, line: str) -> None:
        """Print the device, the precision and the reason for it, as `Numerics.line` returns them."""
        self._line("precision", line)

    def print_parts(self, trainer: Trainer) -> None:
        """Print the number of images and of parameters, which are known once everything is built."""
        validation = "no" if trainer.validation is None else f"{len(trainer.validation):,}"
        self._line("data", f"{len(trainer.loader):,} training images, {validation} validation images")
        if trainer.loader.buckets is not None:
            self._line("sizes", _sizes_line(trainer.loader.buckets))
        networks: list[nn.Module | None] = [trainer.autoencoder, trainer.discriminator]
        self._line("networks", "; ".join(_parameters(network) for network in networks if network is not None))
        for name, text in trainer.objective.describe().items():
            self._line(name, text)
        for optimizer, network in zip(trainer.optimizers, ("autoencoder", "discriminator"), strict=False):
            if len(optimizer.param_groups) > 1:
                for number, line in enumerate(describe_groups(optimizer)):
                    self._line("" if number else "optimizer", f"{network}, {line}")
        if (power := trainer.averages.power) is not None:
            self._line("power EMA", power_ema_line(power, trainer.config))

    def _line(self, name: str, text: str) -> None:
        self._console.print(_line(name, text), markup=False, soft_wrap=True)


def _line(name: str, text: str) -> str:
    return f"{name + ': ' if name else '':<{_WIDTH}}{text}"


def _steps_line(phase: Phase, processes: int) -> str:
    """Return the number of steps and of their images, and what else a phase sets."""
    training = phase.config.training
    batch = training.batch_size * training.accumulation * processes
    of = f"batch_size {training.batch_size} x accumulation {training.accumulation} x processes {processes}"
    others = {key: value for key, value in settings(phase.overrides).items() if key not in _IN_STEPS}
    steps = f"{training.max_steps}" if training.max_minutes is None else _timed(training)
    return f"{steps}, {batch} images each ({of})" + "".join(f"; {key} {_shown(value)}" for key, value in others.items())


def _timed(training: Any) -> str:
    return f"those of {training.max_minutes:g} minutes and at most {training.max_steps}"


def _shown(value: Any) -> str:
    """Return a setting in few words: a class by its name, null as null."""
    if isinstance(value, Mapping) and "class_path" in value:
        return str(value["class_path"]).rpartition(".")[2]
    return str(value) if isinstance(value, str) else json.dumps(value)


def _images_line(data: Any) -> str:
    """Return the origin of the training and validation images."""
    if data.validation_images == 0:
        held_out = "no validation"
    elif data.validation is None:
        held_out = f"up to {data.validation_images} of them held out for validation"
    else:
        held_out = f"validation on up to {data.validation_images} of {data.validation}"
    square = f"{data.resolution}x{data.resolution} pixels"
    if data.sizes is not None:
        sizes = data.sizes if isinstance(data.sizes, str) else ", ".join(data.sizes)
        return f"{data.train} at {sizes} pixels; {held_out}, at {square}"
    if data.area is not None:
        return f"{data.train} at sizes of about {data.area} pixels; {held_out}, at {square}"
    return f"{data.train} at {square}, {held_out}"


def _sizes_line(buckets: Buckets) -> str:
    """Return the number of images of the most frequent sizes, and the largest size, which determines the memory."""
    counts = sorted(zip(buckets.names, map(len, buckets.members), strict=True), key=lambda entry: -entry[1])
    shown = ", ".join(f"{name} {count:,}" for name, count in counts[:_SIZES_SHOWN])
    more = ", ..." if len(counts) > _SIZES_SHOWN else ""
    height, width = max(buckets.sizes, key=math.prod)
    return f"{len(counts)} with images: {shown}{more}; the largest, {height}x{width}, needs the most memory"


def trackers_line(training: TrainingConfig, folder: Path) -> str:
    """Return the name of each tracker, and where its user finds the run."""
    found = []
    for name in chosen_trackers(training):
        if name == TENSORBOARD:
            logs = shlex.quote(str(tensorboard_folder(training, folder).parent))
            found.append(f"{name} (tensorboard --logdir {logs})")
        elif name == WANDB:
            found.append(f"{name} (project {training.project}, run {run_name(training, folder)})")
        else:
            found.append(f"{name} (project {training.project})")
    return ", ".join(found) or "none"


def power_ema_line(power: PowerEMA, training: TrainingConfig) -> str:
    """Return the lengths of the averages, and the size of their snapshots on disk."""
    count = -(-training.max_steps // training.power_ema_every)
    lengths, size = ", ".join(f"{length:g}" for length in power.lengths), power.size()
    at_most = "" if training.max_minutes is None else "at most "
    return (
        f"lengths {lengths}; {at_most}{count} snapshots of {_megabytes(size)}, one every {training.power_ema_every} "
        f"steps: {at_most}{_megabytes(count * size)} in {AVERAGES}/"
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.1f} GB"


def _parameters(network: nn.Module) -> str:
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    total, trainable = sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns)
    return f"{type(network).__name__} {total:,} parameters ({trainable:,} trainable)"


def closing_lines(trainer: Trainer, data: DataConfig) -> Iterator[str]:
    """Yield the lines of a run that has all its steps: its model, its best step, the next commands.

    Args:
        trainer: The trainer after its last step, or of a run that was finished before.
        data: The run's images, with which the commands are written.
    """
    steps, last, phase = trainer.config.max_steps, trainer.run_step, trainer.phase
    done, seconds = trainer.log.duration()
    minutes = trainer.config.max_minutes
    setting, value, of = "training.max_steps", float(steps), f"step {last} of {trainer.first_step + steps}"
    if minutes is not None and trainer.step < steps:
        setting, value, of = "training.max_minutes", minutes, f"step {last} after {minutes:g} minutes"
    if done:
        speed = done * trainer.loader.global_batch / max(seconds, 1e-9)
        where = "" if phase.count == 1 else f" of {phase.name}"
        yield _line("finished", f"{of}; {done} steps{where} in {duration(seconds)}, {speed:.1f} images/s")
    else:
        yield _line("finished", f"{of}; nothing is left to train")
        yield _line(
            "", f"to train longer, add --{phase.key(setting)} {2 * value:.12g}, or any number above {value:.12g}"
        )
    yield _line("model", f"{trainer.folder / 'model'} ({trainer.averages.kind} of step {last})")
    if trainer.best is not None:
        yield _line("best", _best(trainer, int(trainer.best["step"]), trainer.best["score"]))
    for number, command in enumerate(next_commands(trainer.folder, data)):
        yield _line("next" if number == 0 else "", command)


def _best(trainer: Trainer, step: int, score: float) -> str:
    metric = trainer.scoring.best
    value = score if metric.direction == "higher" else -score
    pointer = trainer.folder / CHECKPOINTS / BEST
    place = f": {trainer.folder}@{BEST}" if pointer.is_dir() else ""
    return f"step {step}, {metric.name} {value:.4g} ({metric.direction} is better){place}"


def next_commands(folder: Path, data: DataConfig) -> list[str]:
    """Return commands that use a finished run; their results lie beside the run directory."""
    run, train, held_out = (shlex.quote(str(path)) for path in (folder, data.train, data.validation or data.train))
    beside = folder if folder.name not in ("", "..") else folder.resolve()
    evaluation, latents, exported = (shlex.quote(f"{beside}-{name}") for name in ("evaluation", "latents", "diffusers"))
    return [
        f"ldm-ae evaluate {run} {held_out} --out {evaluation}",
        f"ldm-ae encode {run} {train} {latents}",
        f"ldm-ae export {run} {exported} --images {train}",
    ]
