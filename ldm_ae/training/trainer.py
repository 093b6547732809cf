"""The loop around the two optimization steps: resume, step, log, validate, save.

The steps themselves are in `steps.py`.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldm_ae.data import Batch, EvaluationLoader, TrainingLoader, seeded_noise
from ldm_ae.discriminators import BothSides, Discriminator
from ldm_ae.environment import describe_environment
from ldm_ae.errors import UserError, printable, reason
from ldm_ae.evaluation import comparison_grid, validate
from ldm_ae.files import write_json, writing_folder
from ldm_ae.interop import measure_scaling
from ldm_ae.losses import Objective
from ldm_ae.models import Autoencoder
from ldm_ae.models.trainable import set_trainable
from ldm_ae.training import checkpoint as checkpoints
from ldm_ae.training.alarms import Alarms
from ldm_ae.training.config import TrainingConfig
from ldm_ae.training.ema import EMA
from ldm_ae.training.optimizers import OptimizerConfig, load_optimizer
from ldm_ae.training.rng import rng_state, set_rng_state
from ldm_ae.training.run_log import RunLog, Window, peak_memory_bytes
from ldm_ae.training.state import check_state
from ldm_ae.training.steps import MicroBatch, StepParts, discriminator_step, generator_step

SAMPLE_IMAGES = 8
SAVED_BY_SIGNAL = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""Exit status after a signal: the shell's convention, 128 + its number. The run has been saved by then."""


class Stopped(Exception):  # noqa: N818 - it is no error: the run was asked to stop, and has been saved
    """The run was saved and ended by a signal; `status` is the exit status."""

    def __init__(self, status: int):
        super().__init__(f"saved and stopped (exit status {status})")
        self.status = status


class Trainer:
    """Trains one autoencoder in one run directory.

    Args:
        folder: The run directory; a run that is there is continued.
        accelerator: Devices, processes, mixed precision and trackers.
        autoencoder: In float32.
        objective: The generator's losses.
        discriminator: None for none.
        training: Steps, precision, intervals.
        optimizer: The autoencoder's and the objective's.
        discriminator_optimizer: The discriminator's.
        loader: Training images of this process.
        validation: Held-out images, whole on every process, or None.
        identity: What makes this run this run; a checkpoint with another is refused.
    """

    def __init__(
        self,
        *,
        folder: Path,
        accelerator: Accelerator,
        autoencoder: Autoencoder,
        objective: Objective,
        discriminator: Discriminator | None,
        training: TrainingConfig,
        optimizer: OptimizerConfig,
        discriminator_optimizer: OptimizerConfig,
        loader: TrainingLoader,
        validation: EvaluationLoader | None,
        identity: dict[str, Any],
    ):
        self.folder, self.accelerator, self.config, self.identity = folder, accelerator, training, identity
        self.loader, self.validation = loader, validation
        self.step = 0
        self.position = 0  # samples of the global stream that have been used
        self.best: dict[str, float] | None = None
        self.skipped_steps = 0

        # Networks: which parameters learn, layouts, compilation, then Accelerate's wrappers.
        set_trainable(autoencoder, training.trainable)
        adaptive = discriminator is not None and objective.config.adaptive_gan_weight
        if adaptive and not autoencoder.last_layer.requires_grad:
            raise UserError("adaptive_gan_weight is measured at the decoder's last layer, which `trainable` leaves out")
        self.autoencoder = autoencoder.train()
        self.ema = EMA(autoencoder, training.ema_decay) if training.ema_decay is not None else None
        if training.gradient_checkpointing:
            autoencoder.enable_gradient_checkpointing()
        self.discriminator = _synchronized(discriminator, accelerator)
        pair = None if self.discriminator is None else BothSides(self.discriminator)
        for module in (autoencoder, self.discriminator):
            if module is not None:
                module.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.ema is not None:
            self.ema.model.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if training.compile:
            autoencoder.compile_parts(for_training=True)
            if self.discriminator is not None:
                self.discriminator.compile()
        self.objective = objective.to(accelerator.device)
        if objective.perceptual is not None:
            objective.perceptual.set_precision(_autocast_dtype(training.precision))

        # Optimizers.
        generator_parameters = [p for p in [*autoencoder.parameters(), *objective.parameters()] if p.requires_grad]
        self.parameters: list[list[nn.Parameter]] = [generator_parameters]
        self.optimizer_configs = [optimizer, discriminator_optimizer]
        # Under fp16 the scaler must be able to leave a step out, which a fused optimizer does inside, unseen.
        fused = training.precision != "fp16"
        optimizers = [optimizer.build(generator_parameters, loader.global_batch, fused=fused)]
        if pair is not None:
            self.parameters.append(list(pair.parameters()))
            optimizers.append(discriminator_optimizer.build(pair.parameters(), loader.global_batch, fused=fused))
        self.optimizers = [accelerator.prepare_optimizer(o) for o in optimizers]
        prepared = accelerator.prepare_model(autoencoder)
        prepared_pair = None if pair is None else accelerator.prepare_model(pair)
        self.parts = StepParts(accelerator, prepared, self.objective, prepared_pair)

    # ---------------------------------------------------------------------------------------------------- the loop

    def fit(self) -> None:
        """Train up to `max_steps`, from the newest checkpoint of the run directory if there is one.

        Raises:
            Stopped: a signal ended the run; it has been saved.
            UserError: the run directory holds another run, or too many images are bad.
        """
        config = self.config
        log = self.log = RunLog(self.folder, self.accelerator, config.max_steps)
        if self.accelerator.is_main_process:
            write_json(self.folder / "environment.json", describe_environment(self.accelerator.device))
        self.resume()
        alarms, window = Alarms(), Window()
        stream = self.loader.steps(self.position)
        with log.progress, _Signals() as signals:
            while self.step < config.max_steps:
                started = time.perf_counter()
                batches = next(stream)
                logs, reconstructions = self.train_step(batches)
                window.add(logs, self.loader.global_batch, time.perf_counter() - started)
                log.advance(self.step)
                last = self.step == config.max_steps
                if self.step % config.log_every == 0 or last:
                    self._log(window, alarms)
                if self.step % config.sample_every == 0 or last:
                    first = batches[0].pixel_values[:SAMPLE_IMAGES]
                    log.picture(self.step, comparison_grid(first, reconstructions[: len(first)].cpu()))
                improved = (self.step % config.validate_every == 0 or last) and self.validate()
                stop = self._agree(signals.received)
                if self.step % config.checkpoint_every == 0 or improved or last or stop:
                    self.save()
                if stop and not last:
                    log.say(f"saved at step {self.step} and stopped; the same command goes on from there")
                    raise Stopped(SAVED_BY_SIGNAL[signal.Signals(stop)])
        self.export()

    def train_step(self, batches: Sequence[Batch]) -> tuple[dict[str, Tensor], Tensor]:
        """One update of the generator and, once it has started, of the discriminator.

        Returns:
            Scalars to log, and the reconstructions of the first micro-batch.
        """
        micro_batches = [self._micro_batch(batch) for batch in batches]
        reconstructions, logs = generator_step(self.parts, micro_batches, self.step)
        logs["grad_norm"] = self._update(0)
        discriminator_logs = discriminator_step(self.parts, micro_batches, reconstructions, self.step)
        if discriminator_logs is not None:
            logs |= discriminator_logs
            logs["discriminator_grad_norm"] = self._update(1)
        if self.ema is not None:
            self.ema.update(self.autoencoder, self.step)
        self.step += 1
        self.position += self.loader.global_batch
        return logs, reconstructions[0]

    def _update(self, which: int) -> Tensor:
        """Set the learning rate, clip, update, clear; the gradient's norm before clipping."""
        optimizer = self.optimizers[which]
        self.optimizer_configs[which].schedule_step(optimizer.optimizer, self.step, self.config.max_steps)
        limit = self.config.max_grad_norm if self.config.max_grad_norm is not None else float("inf")
        norm = self.accelerator.clip_grad_norm_(self.parameters[which], limit)
        optimizer.step()
        self.skipped_steps += int(optimizer.step_was_skipped)
        optimizer.zero_grad(set_to_none=True)
        assert norm is not None
        return norm

    def _micro_batch(self, batch: Batch) -> MicroBatch:
        device = self.accelerator.device
        spec = self.autoencoder.latent_spec
        height, width = spec.latent_size(*batch.pixel_values.shape[-2:])
        noise = seeded_noise(batch.seeds, (spec.channels, height, width))
        pixel_values = batch.pixel_values.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        return MicroBatch(pixel_values, noise.to(device, non_blocking=True))

    # -------------------------------------------------------------------------------------- logging and validation

    def _log(self, window: Window, alarms: Alarms) -> None:
        values = window.means(self.accelerator)
        if "kl_loss" in values:
            values["kl_per_latent"] = values["kl_loss"] / self._latent_elements()
        values["learning_rate"] = self.optimizers[0].param_groups[0]["lr"]
        if len(self.optimizers) > 1:
            values["discriminator_learning_rate"] = self.optimizers[1].param_groups[0]["lr"]
        if self.objective.log_variance is not None:
            values["log_variance"] = self.objective.log_variance.item()
        if self.accelerator.scaler is not None:
            values |= {"loss_scale": self.accelerator.scaler.get_scale(), "skipped_steps": self.skipped_steps}
        values["peak_memory_bytes"] = peak_memory_bytes(self.accelerator.device)
        values["epoch"] = self.loader.epoch(self.position)
        self.log.metrics(self.step, values, kind="train")
        shown = ("rec_loss", "perceptual_loss", "kl_loss", "generator_loss", "discriminator_loss", "adaptive_weight")
        parts = [f"{name.removesuffix('_loss')} {values[name]:.4g}" for name in shown if name in values]
        self.log.say(f"step {self.step}: {', '.join(parts)}, {values['images_per_second']:.1f} images/s")
        for name, words in alarms.check(values).items():
            self.log.warn(self.step, name, words)

    def _latent_elements(self) -> int:
        spec, size = self.autoencoder.latent_spec, self.identity["resolution"]
        height, width = spec.latent_size(size, size)
        return spec.channels * height * width

    def validate(self) -> bool:
        """Score the averaged model on the held-out images; whether it is the best so far. Main process, others wait."""
        if self.validation is None:
            return False
        improved = torch.zeros((), device=self.accelerator.device)
        if self.accelerator.is_main_process:
            dtype = None if self.config.precision == "no" else _autocast_dtype(self.config.precision)
            scores = validate(self._result(), self.validation, self.objective.perceptual, autocast_dtype=dtype)
            self.log.metrics(self.step, scores, kind="validation")
            self.log.say(f"step {self.step}: validation " + ", ".join(f"{k} {v:.4g}" for k, v in scores.items()))
            score = self._ranking(scores)
            if self.best is None or score > self.best["score"]:
                self.best = {"step": self.step, "score": score}
                improved += 1
        return bool(self.accelerator.reduce(improved, reduction="sum"))

    def _ranking(self, scores: dict[str, float]) -> float:
        """Higher is better."""
        if self.config.best_metric != "perceptual":
            return scores[self.config.best_metric]
        if self.objective.perceptual is None:
            raise UserError("training.best_metric is 'perceptual', but the objective has no perceptual loss")
        return -scores[self.objective.perceptual.name]

    def _result(self) -> Autoencoder:
        """What is evaluated and exported: the averaged weights if there are any."""
        return self.ema.model if self.ema is not None else self.autoencoder

    # ------------------------------------------------------------------------------------------ saving and resuming

    def _modules(self) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {"objective": _LearnedPart(self.objective)}
        return modules if self.discriminator is None else modules | {"discriminator": self.discriminator}

    def save(self) -> None:
        """A checkpoint, the newest model beside it, and older checkpoints gone. Main process, others wait."""
        generators = _gather(self.accelerator, rng_state())
        if self.accelerator.is_main_process:
            folder = self.folder / "checkpoints"
            state = {
                "step": self.step,
                "position": self.position,
                "best": self.best,
                "identity": self.identity,
                "optimizers": [optimizer.optimizer.state_dict() for optimizer in self.optimizers],
                "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
                "rng": generators,
            }
            checkpoints.save_checkpoint(
                folder / checkpoints.checkpoint_name(self.step),
                autoencoder=self.autoencoder,
                ema=None if self.ema is None else self.ema.model,
                modules=self._modules(),
                state=state,
            )
            best = None if self.best is None else checkpoints.checkpoint_name(int(self.best["step"]))
            checkpoints.prune(folder, keep=self.config.keep_checkpoints, also=best)
            with writing_folder(self.folder / "model") as temporary:
                self._result().save_pretrained(temporary)
        self.accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Go on from the newest checkpoint that counts; nothing to do if there is none."""
        folder, damaged = checkpoints.newest_checkpoint(self.folder / "checkpoints")
        for name, reasons in damaged.items():
            self.log.say(f"checkpoint {name} does not count and is passed over: {reasons[0]}")
        if folder is None:
            return
        state = checkpoints.load_state(folder)
        try:
            check_state(state)
        except ValueError as error:
            raise UserError(f"{folder / 'state.json'} is not sound: {error}") from error
        for key, value in self.identity.items():
            if (found := state["identity"].get(key)) != value:
                raise UserError(
                    f"{self.folder} holds a run with another {key} ({printable(found)}, now {value}); "
                    "give another --out, or the configuration it was started with"
                )
        networks: dict[str, nn.Module] = {"model/diffusion_pytorch_model": self.autoencoder.net}
        if self.ema is not None:
            networks["ema/diffusion_pytorch_model"] = self.ema.model.net
        checkpoints.load_modules(folder, networks | self._modules())
        try:
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                load_optimizer(optimizer.optimizer, saved)
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            if len(state["rng"]) == self.accelerator.num_processes:
                set_rng_state(state["rng"][self.accelerator.process_index])
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
            raise UserError(f"the state in {folder} does not fit this run: {reason(error)}") from error
        self.step, self.position, self.best = state["step"], state["position"], state["best"]
        self.log.say(f"continuing from {folder.name}")

    def export(self) -> None:
        """The run's `model/`, with the scaling factor measured on the held-out images if there are any."""
        if self.accelerator.is_main_process:
            result = self._result()
            if self.validation is not None:
                statistics = measure_scaling(result, self.validation)
                result.set_scaling(scaling_factor=1.0 / statistics.pooled_std)
            with writing_folder(self.folder / "model") as temporary:
                result.save_pretrained(temporary)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    def _agree(self, received: int) -> int:
        """The largest signal number that any process has received, 0 for none."""
        if self.accelerator.num_processes == 1:
            return received
        numbers = self.accelerator.gather(torch.tensor([received], device=self.accelerator.device))
        return int(numbers.max())


class _LearnedPart(nn.Module):
    """The objective's own parameter without the frozen perceptual network."""

    def __init__(self, objective: Objective):
        super().__init__()
        self.log_variance = objective.log_variance


class _Signals(AbstractContextManager["_Signals"]):
    """Notes the first SIGINT or SIGTERM within it; a second one acts as it would without."""

    received = 0

    def __enter__(self) -> _Signals:
        self._previous = {number: signal.signal(number, self._note) for number in SAVED_BY_SIGNAL}
        return self

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, self._previous[signal.Signals(number)])

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def _autocast_dtype(precision: str) -> torch.dtype:
    return {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _synchronized(discriminator: Discriminator | None, accelerator: Accelerator) -> Discriminator | None:
    """Batch normalization over all processes; torch has none on CPUs, where it stays apart in each process."""
    if discriminator is None or accelerator.num_processes == 1 or accelerator.device.type == "cpu":
        return discriminator
    return nn.SyncBatchNorm.convert_sync_batchnorm(discriminator)


def _gather(accelerator: Accelerator, value: Any) -> list[Any]:
    """The value of every process, in order."""
    if accelerator.num_processes == 1:
        return [value]
    gathered: list[Any] = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(gathered, value)
    return gathered
