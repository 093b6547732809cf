"""The loop around the two optimization steps of `steps.py`: resume, step, log, validate, save."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ldm_ae.core.compilation import one_graph_a_size
from ldm_ae.core.environment import ENVIRONMENT, describe_environment
from ldm_ae.core.errors import Stopped, UserError
from ldm_ae.core.precision import Numerics
from ldm_ae.core.seeding import mix_seed
from ldm_ae.core.terminal import ProgressDisplay
from ldm_ae.data import Batch, EvaluationLoader, TrainingLoader, seeded_noise
from ldm_ae.discriminators import Discriminator
from ldm_ae.evaluation import validate
from ldm_ae.interop import settle_scaling
from ldm_ae.io.files import write_json, writing_folder
from ldm_ae.losses import Objective
from ldm_ae.models import Autoencoder
from ldm_ae.regularizers import Regularizer
from ldm_ae.training.checkpoints.checkpoint import Checkpoints
from ldm_ae.training.checkpoints.saver import Progress, Saver
from ldm_ae.training.config import TrainingConfig
from ldm_ae.training.monitoring.alarms import Alarms
from ldm_ae.training.monitoring.guard import Guard
from ldm_ae.training.monitoring.run_log import RunLog, Window, finished_step, peak_memory_bytes, relative_values
from ldm_ae.training.monitoring.samples import Samples
from ldm_ae.training.monitoring.signals import Signals, agreed_signal
from ldm_ae.training.networks import Networks
from ldm_ae.training.optimizers import OptimizerConfig
from ldm_ae.training.phases import Phase, remove_results
from ldm_ae.training.recorded_models import record_training
from ldm_ae.training.step_parts import MicroBatch
from ldm_ae.training.steps import discriminator_step, generator_step
from ldm_ae.training.time_limit import TimeLimit, known_length
from ldm_ae.training.validation import choose_metrics

_GRAPHS_A_SIZE = 4
"""Compiled graphs of a network for one image size: in both networks' steps, with and without parameter gradients."""


class Trainer:
    """The training of one autoencoder in one run directory.

    Args:
        folder: The run directory; an existing run is resumed.
        accelerator: Devices, processes, mixed precision and trackers.
        numerics: The precision that the accelerator was made with, and the memory layout.
        autoencoder: The model, in float32.
        objective: The generator's losses.
        regularizer: The module between encoder and decoder.
        discriminator: None for training without an adversarial loss.
        training: Steps, precision, intervals.
        optimizer: The optimizer of the autoencoder and the objective.
        discriminator_optimizer: The optimizer of the discriminator.
        loader: Training images of this process.
        validation: Held-out images, all of them on every process, or None.
        samples: The images that the run shows in samples/ and in its trackers.
        identity: The run's identity; a checkpoint with another one is refused.
        phase: The phase of the run; by default, the run has one.
        checkpoints: The checkpoints of the run, where the caller has them.
    """

    def __init__(
        self,
        *,
        folder: Path,
        accelerator: Accelerator,
        numerics: Numerics,
        autoencoder: Autoencoder,
        objective: Objective,
        regularizer: Regularizer,
        discriminator: Discriminator | None,
        training: TrainingConfig,
        optimizer: OptimizerConfig,
        discriminator_optimizer: OptimizerConfig,
        loader: TrainingLoader,
        validation: EvaluationLoader | None,
        samples: Samples,
        identity: dict[str, Any],
        phase: Phase | None = None,
        checkpoints: Checkpoints | None = None,
    ):
        self.phase = phase or Phase()
        self.folder, self.accelerator, self.config, self.identity = folder, accelerator, training, identity
        self.loader, self.validation, self.samples, self.numerics = loader, validation, samples, numerics
        self.scoring = choose_metrics(training.best_metric, objective.perceptual)
        self.step = 0  # of this phase; the schedules count these
        self.first_step = 0  # steps of the phases before
        self.position = 0  # samples of the phase's global stream that have been used
        self.best: dict[str, Any] | None = None
        self.skipped_steps = 0
        self.limit = TimeLimit(training, accelerator)
        self.log = RunLog(folder, accelerator, known_length(training), loader.global_batch, self.phase)
        self._resumed = False

        networks = Networks(
            autoencoder, regularizer, objective, discriminator,
            accelerator=accelerator, numerics=numerics, config=training,
            optimizer_averages=optimizer.averages_weights(),
        )  # fmt: skip
        self.autoencoder, self.averages, self.objective = networks.autoencoder, networks.averages, networks.objective
        self.discriminator, self.parts = networks.discriminator, networks.parts
        self.regularizer, self._models = regularizer, networks.models()
        named = [networks.generator_parameters(), networks.discriminator_parameters()]
        named = named if self.discriminator is not None else named[:1]
        self.parameters = [list(parameters.values()) for parameters in named]
        self.optimizer_configs = [optimizer, discriminator_optimizer]
        fused = numerics.precision != "fp16"  # A fused optimizer would skip a step internally, unseen.
        self.optimizers = [
            chosen.build(parameters, loader.global_batch, fused=fused)
            for chosen, parameters in zip(self.optimizer_configs, named, strict=False)
        ]
        self.saver = Saver(
            folder, accelerator, training, identity,
            models=self._models, others=networks.others(), optimizers=self.optimizers, averages=self.averages,
            phase=self.phase, checkpoints=checkpoints,
        )  # fmt: skip
        self.guard = Guard(accelerator, list(networks.changed_early()), training.max_bad_steps)

    # ---------------------------------------------------------------------------------------------------- the loop

    @property
    def run_step(self) -> int:
        """Number of updates done in the whole run, which names files and log lines."""
        return self.first_step + self.step

    def is_finished(self) -> bool:
        """Return whether the run has ended and its model has been written; call it after `resume`."""
        done = self.phase.is_last and self.limit.has_ended(self.step) and self.run_step == finished_step(self.folder)
        return done and (self.folder / "model").is_dir()

    def fit(self) -> None:
        """Train to the end, from the newest checkpoint in the run directory if one exists, and write the model.

        Raises:
            Stopped: A signal ended the run; it is saved.
            UserError: The run directory holds another run, or too many images are bad.
            RunError: Too many consecutive steps were not finite, or a checkpoint could not be written.
        """
        if not self._resumed:
            self.resume()
        config, log = self.config, self.log
        if self.accelerator.is_main_process:
            environment = describe_environment(self.accelerator.device) | {"numerics": self.numerics.describe()}
            write_json(self.folder / ENVIRONMENT, environment | self.objective.describe())
            remove_results(self.folder, self.phase.number)
        log.rewind(self.run_step)
        self.saver.rewind(self.step)
        if self.discriminator is not None and self.objective.config.discriminator_start >= config.max_steps:
            start = self.objective.config.discriminator_start
            log.warn(
                self.run_step, "no_discriminator",
                f"the discriminator is not trained: it starts at step {start}, after the last step {config.max_steps}",
            )  # fmt: skip
        self.alarms, self.window = Alarms(), Window()
        stream = self.loader.steps(self.position)
        sizes = self._image_sizes()
        graphs = one_graph_a_size(sizes, _GRAPHS_A_SIZE) if config.compile and sizes > 1 else nullcontext()
        with log.progress, self.saver.settled(), graphs, Signals() as signals:
            log.advance(self.step)
            self.limit.start()
            while not self.limit.has_ended(self.step):
                started = time.perf_counter()
                batches = next(stream)
                logs = self.train_step(batches)
                save = logs is not None and self._after_step(batches, logs, time.perf_counter() - started)
                stop = agreed_signal(self.accelerator, signals.received)
                if save or stop:
                    self.save()
                self.saver.check()
                if stop and not (self.phase.is_last and self.limit.has_ended(self.step)):
                    self.saver.wait()
                    log.print_line(f"saved at step {self.run_step} and stopped; rerun the same command to resume")
                    raise Stopped(stop)
            self.saver.wait()
        self.export()

    def _image_sizes(self) -> int:
        """Return the number of sizes of images that a network may see."""
        side = self.identity["resolution"]
        sizes = [(side, side)] if self.loader.buckets is None else self.loader.buckets.sizes
        return len({seen for size in sizes for seen in self.regularizer.image_sizes(size, judged=False)})

    def train_step(self, batches: Sequence[Batch]) -> dict[str, Tensor] | None:
        """Run one update of the generator and, once it has started, of the discriminator.

        Returns:
            Scalars to log. None where a loss or a gradient was not finite on some process: then no process changes
            anything but the position in the data.

        Raises:
            RunError: `max_bad_steps` consecutive steps were not finite.
        """
        micro_batches = [self._micro_batch(batch) for batch in batches]
        self.guard.before_step()
        results, logs = generator_step(self.parts, micro_batches, self.step)
        discriminator_logs = discriminator_step(self.parts, micro_batches, results, self.step)
        logs |= discriminator_logs or {}
        active = self.optimizers if discriminator_logs is not None else self.optimizers[:1]
        norms = self._gradient_norms(len(active))
        self.position += self.loader.global_batch
        finite = self.guard.are_finite(logs | norms)
        if finite:
            self._update(norms)
            self.step += 1
        else:
            self._skip_step(logs, norms, batches, [result.reconstructions for result in results])
        for optimizer in active:
            optimizer.zero_grad(set_to_none=True)
        return logs | norms if finite else None

    def _gradient_norms(self, count: int) -> dict[str, Tensor]:
        """Return the gradient norm of each of the first `count` optimizers, unscaled, before clipping."""
        if self.accelerator.scaler is not None:
            for optimizer in self.optimizers[:count]:
                self.accelerator.scaler.unscale_(optimizer)
        gradients = [[p.grad for p in parameters if p.grad is not None] for parameters in self.parameters[:count]]
        names = ("grad_norm", "discriminator_grad_norm")
        return {name: get_total_norm(found) for name, found in zip(names, gradients, strict=False)}

    def _update(self, norms: dict[str, Tensor]) -> None:
        """Set the learning rates, clip the gradients, update the parameters, and update the averages."""
        self.saver.before_update()
        scaler = self.accelerator.scaler
        for which, norm in enumerate(norms.values()):
            optimizer = self.optimizers[which]
            steps, minutes = self.config.max_steps, self.limit.minutes_left
            self.optimizer_configs[which].schedule_step(optimizer, self.step, steps, minutes)
            if self.config.max_grad_norm is not None:
                clip_grads_with_norm_(self.parameters[which], self.config.max_grad_norm, norm)
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
        if scaler is not None:
            scaler.update()
        self.averages.update(self.step)
        self.guard.in_a_row = 0

    def _skip_step(
        self, logs: dict[str, Tensor], norms: dict[str, Tensor], batches: Sequence[Batch], fakes: Sequence[Tensor]
    ) -> None:
        """Skip a step that was not finite: undo its changes, report it, and stop if there were too many."""
        self.skipped_steps += 1
        self.guard.undo()
        scaler = self.accelerator.scaler
        if scaler is not None:
            scaler.update()
            # The scaler finds its scale by gradients that overflow fp16; below a scale of 1 there is none to find.
            if self.guard.are_finite(logs) and scaler.get_scale() >= 1.0:
                return
        words = self.guard.describe(logs | norms, batches, fakes)
        self.log.warn(self.run_step, "not_finite", f"skipped the update after step {self.run_step}: {words}")
        self.guard.count(words)

    def _after_step(self, batches: Sequence[Batch], logs: dict[str, Tensor], seconds: float) -> bool:
        """Log, save a sample grid and validate where due; return whether a checkpoint is due."""
        config = self.config
        latents = math.prod(self.autoencoder.latent_spec.latent_size(*batches[0].pixel_values.shape[-2:]))
        self.window.add(logs, self.loader.global_batch, seconds, latents)
        self.log.advance(self.step)
        self.limit.tick()
        last = self.limit.has_ended(self.step)
        if self.step % config.power_ema_every == 0 or last:
            self.saver.save_averages(self.step)
        if self.step % config.log_every == 0 or last:
            self._log()
        if self.step % config.sample_every == 0 or last:
            self._sample()
        improved = (self.step % config.validate_every == 0 or last) and self.validate()
        return self.step % config.checkpoint_every == 0 or improved or last

    def _micro_batch(self, batch: Batch) -> MicroBatch:
        device = self.accelerator.device
        spec = self.autoencoder.latent_spec
        height, width = spec.latent_size(*batch.pixel_values.shape[-2:])
        noise = seeded_noise(batch.seeds, (spec.channels, height, width))
        pixel_values = batch.pixel_values.to(device, non_blocking=True).contiguous(
            memory_format=self.numerics.memory_format
        )
        step_seed = mix_seed(self.identity["seed"], self.position)
        return MicroBatch(pixel_values, noise.to(device, non_blocking=True), tuple(batch.seeds.tolist()), step_seed)

    # -------------------------------------------------------------------------------------- logging and validation

    def _log(self) -> None:
        values = self.window.means(self.accelerator)
        values |= relative_values(
            values, self.autoencoder.latent_spec, self.window.mean_latents, self.loader.global_batch
        )
        values["learning_rate"] = self.optimizers[0].param_groups[0]["lr"]
        if len(self.optimizers) > 1:
            values["discriminator_learning_rate"] = self.optimizers[1].param_groups[0]["lr"]
        values |= self.objective.learned_values()
        if self.accelerator.scaler is not None:
            values |= {"loss_scale": self.accelerator.scaler.get_scale(), "skipped_steps": self.skipped_steps}
        values["peak_memory_bytes"] = peak_memory_bytes(self.accelerator.device)
        values["epoch"] = self.loader.epoch(self.position)
        self.log.metrics(self.run_step, values, kind="train")
        self.log.print_summary(self.run_step, values)
        for name, words in self.alarms.check(values).items():
            self.log.warn(self.run_step, name, words)

    def _sample(self) -> None:
        """Save the fixed images' reconstructions, from the weights that are validated."""
        if self.accelerator.is_main_process:
            image = self.samples.draw(self._result(), self.run_step, self.averages.kind)
            self.log.image(self.run_step, self.samples.file_name(self.run_step), f"samples/{self.samples.kind}", image)

    def validate(self) -> bool:
        """Score the averaged model on held-out images in the main process; return whether it is the best so far."""
        if self.validation is None:
            return False
        improved = torch.zeros((), device=self.accelerator.device)
        if self.accelerator.is_main_process:
            dtype = None if self.numerics.precision == "fp32" else self.numerics.dtype
            metrics, view = self.scoring.metrics, self.objective.config.view
            scores = validate(self._result(), self.validation, metrics=metrics, view=view, autocast_dtype=dtype)
            self.log.metrics(self.run_step, scores, kind="validation")
            words = ", ".join(f"{k} {v:.4g}" for k, v in scores.items())
            self.log.print_line(f"step {self.run_step}: validation {words}")
            score = self.scoring.rank(scores)
            if self.best is None or score > self.best["score"]:
                metric = self.scoring.best.name
                self.best = {"step": self.run_step, "score": score, "metric": metric, "value": float(scores[metric])}
                improved += 1
        return bool(self.accelerator.reduce(improved, reduction="sum"))

    def _result(self) -> Autoencoder:
        """Return the model that is evaluated and exported: the averaged weights if they exist."""
        self.averages.refresh(self.optimizers[0])
        return self.averages.model or self.autoencoder

    # ------------------------------------------------------------------------------------------ saving and resuming

    def save(self) -> None:
        """Write a checkpoint and the newest model beside it, with what the run knows of its latents and images."""
        record_training(self._models.values(), self.regularizer, self.objective)
        best, skipped, seconds = self.best, self.skipped_steps, self.limit.seconds
        self.saver.save(Progress(self.run_step, self.position, best, skipped, self.first_step, seconds))

    def resume(self) -> None:
        """Resume from the newest valid checkpoint, or begin the phase; check all of it before `fit` writes anything.

        Raises:
            UserError: The run directory holds another run, a model without a checkpoint, or more steps than requested.
        """
        found = self.saver.restore(self.log)
        if found is not None:
            step, self.position, self.best, self.skipped_steps, self.first_step, self.limit.seconds = found
            self.step = step - self.first_step
            metric = self.scoring.best.name
            if self.best is not None and self.best.get("metric", metric) != metric:
                self.log.print_line(f"the best checkpoint was chosen by {self.best['metric']}; from here by {metric}")
                self.best = None
        elif (self.folder / "model").exists():
            raise UserError(
                f"{self.folder} has a model but no checkpoint to resume from, and a new run would replace the model; "
                "give another --out, or move the model away"
            )
        if self.step > self.config.max_steps:
            setting = self.phase.key("training.max_steps")
            raise UserError(
                f"{self.folder} is at step {self.step}, past {setting} {self.config.max_steps}; raise "
                f"{setting}, or give another --out"
            )
        self._resumed = True

    def export(self) -> None:
        """Write the phase's model; measure a changed encoder's scale on the held-out images if there are any."""
        if self.accelerator.is_main_process:
            result, folder = self._result(), self.phase.result(self.folder)
            record_training([result], self.regularizer, self.objective)
            with ProgressDisplay("measuring the scale of the latents", None) as progress:
                words, scaled = settle_scaling(
                    result, self.validation, known=self.regularizer.scale(result), progress=progress
                )
            if scaled:
                self.log.print_line(words)
            else:
                self.log.warn(self.run_step, "no_scale", words)
            folder.parent.mkdir(exist_ok=True)
            with writing_folder(folder) as temporary:
                result.save_pretrained(temporary)
            if self.phase.is_last:
                self.log.finished(self.run_step)
        self.accelerator.wait_for_everyone()
