"""The loop of a diffusion run: resuming, logging, previews, checkpoints, the pipeline.

    DIR/
        pipeline/                       what DiffusionPipeline.from_pretrained opens, with the averaged weights
        checkpoints/step-00001000/      model, ema, state, MANIFEST.json: see `training/checkpoints/checkpoint.py`
        samples/  metrics.jsonl  history.jsonl  logs/
        diffusion.json  environment.json

Batch, noise, times and dropped labels of a step are functions of (seed, step, process) alone. A checkpoint therefore
holds the weights, their average, the optimizer and the step, and a resumed run equals an uninterrupted one.

Both pipelines decode latents / scaling_factor without any other step, so the latents are scaled by 1 / (standard
deviation of the whole store), and the pipeline's autoencoder gets that scaling_factor, whatever its own was.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from PIL import Image
from torch import Tensor, nn

from ldm_ae.core.devices import pick_device
from ldm_ae.core.environment import ENVIRONMENT, describe_environment
from ldm_ae.core.errors import Stopped, UserError, reason
from ldm_ae.core.precision import Numerics, agreed_numerics
from ldm_ae.core.seeding import derive_seed
from ldm_ae.core.terminal import duration
from ldm_ae.diffusion import NO_CLASS
from ldm_ae.io.files import (
    clear_leftovers,
    leaving_nothing,
    make_folder,
    read_json,
    require_new_folder,
    write_json,
    writing_folder,
)
from ldm_ae.io.locks import LOCK
from ldm_ae.latents import LatentStore
from ldm_ae.models import Autoencoder, load_autoencoder
from ldm_ae.training.changes import changed_settings, check_identity
from ldm_ae.training.checkpoints.checkpoint import Checkpoints, load_networks
from ldm_ae.training.checkpoints.saver import Progress
from ldm_ae.training.checkpoints.snapshot import AVERAGED, Snapshot
from ldm_ae.training.checkpoints.state import read_state
from ldm_ae.training.config import TrainingConfig
from ldm_ae.training.diffusion.config import DiffusionConfig
from ldm_ae.training.diffusion.data import Batches, check_store, hash_latents, open_latents
from ldm_ae.training.diffusion.networks import as_diffusers, build_model, build_pipeline, training_loss
from ldm_ae.training.ema import EMA
from ldm_ae.training.monitoring.run_log import RunLog, Window, finished_step
from ldm_ae.training.monitoring.signals import Signals, agreed_signal
from ldm_ae.training.monitoring.trackers import LOGS, check_trackers, make_trackers, start_trackers
from ldm_ae.training.only_run import only_run
from ldm_ae.training.optimizers import load_optimizer
from ldm_ae.training.recorded import recorded_numerics

SETTINGS = "diffusion.json"
"""The options in a run directory, by which it is recognized."""
PIPELINE = "pipeline"
LABEL_DROPOUT = 0.1
"""Fraction of labels that are replaced by none, for classifier-free guidance (arXiv 2207.12598)."""
MAX_GRAD_NORM = 1.0
PREVIEW_IMAGES, PREVIEW_STEPS, _COLUMNS = 8, 20, 4


class DiffusionTrainer:
    """The training of one diffusion model.

    Args:
        folder: The run directory, which exists.
        accelerator: Every process of it makes a trainer.
        config: The options.
        store: The latents, which `check_store` accepts.
        autoencoder: The model that made the store; its scale becomes that of the store.

    Raises:
        UserError: diffusers has no class for the autoencoder, or there are fewer latents than processes.
    """

    def __init__(
        self, folder: Path, accelerator: Accelerator, config: DiffusionConfig, store: LatentStore,
        autoencoder: Autoencoder,
    ):  # fmt: skip
        self.folder, self.accelerator, self.config = folder, accelerator, config
        autoencoder.set_scaling(scaling_factor=1 / store.statistics.pooled_std)
        self._decoder = as_diffusers(autoencoder.net)
        data = open_latents(store, autoencoder.latent_spec, config.seed)
        self.batches = Batches(
            data, config.batch_size, seed=config.seed, rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )  # fmt: skip
        channels, size, _ = data[0]["latents"].shape
        set_seed(config.seed)
        self.net = build_model(config.model, channels, size, config.width, config.depth)
        self.ema = EMA(self.net.to(accelerator.device), config.ema_decay)
        self._optimizer = torch.optim.AdamW(self.net.parameters(), lr=config.learning_rate)
        self._model, self._stepper = accelerator.prepare(self.net, self._optimizer)
        self.step = 0
        self.log = RunLog(folder, accelerator, config.steps, self.batches.global_batch)
        self._checkpoints = Checkpoints(folder / "checkpoints", keep=config.keep_checkpoints)
        self._classes = sorted({int(label) for label in data.labels if label >= 0})
        self.identity: dict[str, Any] = {
            "store": hash_latents(data),
            "autoencoder": store.request.model_hash,
            "global_batch": self.batches.global_batch,
        } | {name: getattr(config, name) for name in ("model", "objective", "width", "depth", "seed")}

    # ---------------------------------------------------------------------------------------------------- the loop

    def fit(self) -> None:
        """Train up to `steps` and write the pipeline; call `resume` before.

        Raises:
            Stopped: A signal ended the run; it is saved.
            RunError: A checkpoint could not be written: a value is not finite, or the disk is full.
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
                window.add(logs, self.batches.global_batch, time.perf_counter() - started)
                log.advance(self.step)
                last = self.step == config.steps
                if last or self.step % config.log_every == 0:
                    self._log(window.means(self.accelerator))
                if config.sample_every and (last or self.step % config.sample_every == 0):
                    self._preview()
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
        batch = self.batches.at(self.step)
        labels = None
        if self.config.model == "dit":
            label = batch["label"].to(device)
            dropped = (torch.rand(label.shape, generator=generator, device=device) < LABEL_DROPOUT) | (label < 0)
            labels = label.masked_fill(dropped, NO_CLASS)
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

    def pipeline(self) -> Any:
        """Return the DiffusionPipeline that samples from the averaged weights; it shares them."""
        pipeline = build_pipeline(self.config.model, self.config.objective, self.ema.model, self._decoder)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _preview(self) -> None:
        """Save what the pipeline makes of the same noise, and of the first classes, at every step."""
        if self.accelerator.is_main_process:
            self._decoder.to(self.accelerator.device)
            classes = [self._classes[i % len(self._classes)] for i in range(PREVIEW_IMAGES)] if self._classes else []
            images = self.pipeline()(
                **({"class_labels": classes} if self.config.model == "dit" else {"batch_size": PREVIEW_IMAGES}),
                num_inference_steps=PREVIEW_STEPS,
                generator=torch.Generator().manual_seed(self.config.seed),
            ).images
            self.log.image(self.step, f"step-{self.step:08d}.png", "samples", image_grid(images))
        self.accelerator.wait_for_everyone()

    # ------------------------------------------------------------------------------------------ saving and resuming

    def _save(self) -> None:
        """Write a checkpoint, and remove older ones."""
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            position = self.step * self.batches.global_batch
            state = Progress(self.step, position, best=None, skipped_steps=0)._asdict() | {
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
        """Return whether the run has all its steps and its pipeline has been written; call it after `resume`."""
        return self.step == self.config.steps == finished_step(self.folder) and (self.folder / PIPELINE).is_dir()

    def _export(self) -> None:
        if self.accelerator.is_main_process:
            with writing_folder(self.folder / PIPELINE) as temporary:
                self.pipeline().save_pretrained(temporary)
            self.log.finished(self.step)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()


def train_diffusion(config: DiffusionConfig, *, store: str | Path, autoencoder: str | Path, out: str | Path) -> Path:
    """Train, or resume the run in `out`, and return the folder of its pipeline.

    Raises:
        UserError: An error that the user can fix.
        RunError: The run cannot continue: a value is not finite, or the disk is full.
        Stopped: A signal ended the run; it is saved.
    """
    folder = Path(out)
    if not (folder / SETTINGS).is_file():
        require_new_folder(folder, "the run", own_files=(LOCK, LOGS), overwrite=True)
    check_trackers(config.trackers, "--trackers")
    model = load_autoencoder(autoencoder)
    opened = LatentStore(store)
    check_store(opened, model, config.model)
    numerics = agreed_numerics(config.precision, pick_device(), recorded_numerics(folder))
    with leaving_nothing(folder) as begun:
        make_folder(folder)
        tracking = TrainingConfig(trackers=list(config.trackers), project="ldm_ae_diffusion")
        accelerator = Accelerator(
            cpu=pick_device().type == "cpu", mixed_precision=numerics.mixed_precision,
            log_with=make_trackers(tracking, folder) or None, project_dir=str(folder),
        )  # fmt: skip
        with only_run(folder, accelerator):
            trainer = DiffusionTrainer(folder, accelerator, config, opened, model)
            settings = {"store": str(store), "autoencoder": str(autoencoder)} | asdict(config)
            before = _saved_settings(folder)
            trainer.resume()
            if broadcast_object_list([trainer.is_finished()])[0]:
                accelerator.end_training()
            else:
                # All checks have passed; from here on the run directory changes.
                start_trackers(accelerator, tracking, folder, settings, option="--trackers")
                begun()
                if accelerator.is_main_process:
                    _begin(trainer, numerics, before, settings)
                trainer.fit()
            _print_end(trainer)
    return folder / PIPELINE


def _begin(
    trainer: DiffusionTrainer, numerics: Numerics, before: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Write the options, the machine and, after a resume, the changed options."""
    trainer.log.print_line(f"precision: {numerics.line()}")
    for folder in (trainer.folder, trainer.folder / "checkpoints"):
        clear_leftovers(folder)
    if trainer.step:
        places = ("store", "autoencoder")  # moved or copied ones are the same, or they were refused
        same = {name: value for name, value in before.items() if name not in places}
        now = {name: value for name, value in settings.items() if name not in places}
        trainer.log.changes(trainer.step, changed_settings(same, now))
    write_json(trainer.folder / SETTINGS, settings)
    environment = describe_environment(trainer.accelerator.device) | {"numerics": numerics.describe()}
    write_json(trainer.folder / ENVIRONMENT, environment)


def _saved_settings(folder: Path) -> dict[str, Any]:
    """Return the options that a run directory was last started with; empty for a new run."""
    path = folder / SETTINGS
    try:
        found = read_json(path) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path} is damaged ({reason(error)}); restore it from a copy") from error
    return found if isinstance(found, dict) else {}


def _print_end(trainer: DiffusionTrainer) -> None:
    """Print what a run that has all its steps has written."""
    done, seconds = trainer.log.duration()
    steps = trainer.config.steps
    rest = f"{done} steps in {duration(seconds)}" if done else "nothing is left to train"
    trainer.log.print_line(f"finished: step {trainer.step} of {steps}; {rest}")
    if not done:
        trainer.log.print_line(f"to train longer, add --steps {2 * steps}, or any number above {steps}")


def image_grid(images: list[Image.Image]) -> Image.Image:
    """Return the images, which have one size, in rows of `_COLUMNS`."""
    tiles = np.stack([np.asarray(image.convert("RGB")) for image in images])
    _, height, width, _ = tiles.shape
    rows = tiles.reshape(-1, _COLUMNS, height, width, 3).transpose(0, 2, 1, 3, 4)
    return Image.fromarray(rows.reshape(-1, _COLUMNS * width, 3))
