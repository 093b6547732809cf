"""A diffusion run on a latent store, whose result is a pipeline that diffusers opens without our code.

    DIR/
        pipeline/                       what DiffusionPipeline.from_pretrained opens, with the averaged weights
        diffusion.json                  the options
        environment.json
        and the files of the loop, `trainer.py`

Both pipelines decode latents / scaling_factor without any other step, so the latents are scaled by 1 / (standard
deviation of the whole store), and the pipeline's autoencoder gets that scaling_factor, whatever its own was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from PIL import Image
from torch import Tensor, nn

from ldm_ae.core.devices import pick_device
from ldm_ae.core.environment import ENVIRONMENT, describe_environment
from ldm_ae.core.errors import UserError, reason
from ldm_ae.core.precision import Numerics, agreed_numerics
from ldm_ae.core.terminal import duration
from ldm_ae.diffusion import NO_CLASS
from ldm_ae.evaluation import legible
from ldm_ae.io.files import clear_leftovers, leaving_nothing, make_folder, read_json, require_new_folder, write_json
from ldm_ae.io.locks import LOCK
from ldm_ae.latents import LatentStore
from ldm_ae.models import Autoencoder, load_autoencoder
from ldm_ae.training.changes import changed_settings
from ldm_ae.training.config import TrainingConfig
from ldm_ae.training.diffusion.config import DiffusionConfig
from ldm_ae.training.diffusion.data import Batches, check_store, hash_latents, open_latents
from ldm_ae.training.diffusion.networks import as_diffusers, build_model, build_pipeline
from ldm_ae.training.diffusion.trainer import DiffusionTrainer
from ldm_ae.training.monitoring.trackers import LOGS, check_trackers, make_trackers, start_trackers
from ldm_ae.training.only_run import only_run
from ldm_ae.training.recorded import recorded_numerics

SETTINGS = "diffusion.json"
"""The options in a run directory, by which it is recognized."""
PIPELINE = "pipeline"
LABEL_DROPOUT = 0.1
"""Fraction of labels that are replaced by none, for classifier-free guidance (arXiv 2207.12598)."""
PREVIEW_IMAGES, PREVIEW_STEPS, _COLUMNS = 8, 20, 4


class PipelineTask:
    """Training on a latent store, for a pipeline of diffusers.

    Args:
        config: The options.
        store: The latents, which `check_store` accepts.
        autoencoder: The model that made the store; its scale becomes that of the store.
        rank: Rank of this process.
        world_size: Number of processes.

    Raises:
        UserError: diffusers has no class for the autoencoder, or there are fewer latents than processes.
    """

    result = PIPELINE

    def __init__(
        self, config: DiffusionConfig, store: LatentStore, autoencoder: Autoencoder, *, rank: int, world_size: int
    ):
        autoencoder.set_scaling(scaling_factor=1 / store.statistics.pooled_std)
        self._config, self._store = config, store
        self._decoder = as_diffusers(autoencoder.net)
        self._data = open_latents(store, autoencoder.latent_spec, config.seed)
        self._batches = Batches(self._data, config.batch_size, seed=config.seed, rank=rank, world_size=world_size)
        self._classes = sorted({int(label) for label in self._data.labels if label >= 0})

    @property
    def global_batch(self) -> int:
        """See `Task`."""
        return self._batches.global_batch

    def build_network(self) -> nn.Module:
        """See `Task`."""
        channels, size, _ = self._data[0]["latents"].shape
        network: nn.Module = build_model(self._config.model, channels, size, self._config.width, self._config.depth)
        return network

    def batch(self, step: int) -> dict[str, Any]:
        """See `Task`."""
        return self._batches.at(step)

    def labels(self, label: Tensor, generator: torch.Generator) -> Tensor | None:
        """Return the store's classes, some of them dropped; None for the unet."""
        if self._config.model != "dit":
            return None
        dropped = torch.rand(label.shape, generator=generator, device=label.device) < LABEL_DROPOUT
        return label.masked_fill(dropped | (label < 0), NO_CLASS)

    def identity(self) -> dict[str, Any]:
        """See `Task`."""
        return {"store": hash_latents(self._data), "autoencoder": self._store.request.model_hash}

    def pipeline(self, network: nn.Module) -> Any:
        """Return the DiffusionPipeline that samples from a network; it shares its weights."""
        pipeline = build_pipeline(self._config.model, self._config.objective, network, self._decoder)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def preview(self, network: nn.Module) -> Image.Image:
        """Return what the pipeline makes of the same noise and of the first classes."""
        self._decoder.to(next(network.parameters()).device)
        classes = [self._classes[i % len(self._classes)] for i in range(PREVIEW_IMAGES)] if self._classes else []
        images = self.pipeline(network)(
            **({"class_labels": classes} if self._config.model == "dit" else {"batch_size": PREVIEW_IMAGES}),
            num_inference_steps=PREVIEW_STEPS,
            generator=torch.Generator().manual_seed(self._config.seed),
        ).images
        return image_grid(images)

    def export(self, network: nn.Module, folder: Path) -> None:
        """Write the pipeline."""
        self.pipeline(network).save_pretrained(folder)


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
            task = PipelineTask(
                config, opened, model, rank=accelerator.process_index, world_size=accelerator.num_processes
            )
            trainer = DiffusionTrainer(folder, accelerator, config, task, preview=task.preview)
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
    """Return the images, which have one size, in rows of `_COLUMNS`; small ones are enlarged (`legible`)."""
    pixels = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))
    tiles = legible(pixels.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    _, height, width, _ = tiles.shape
    rows = tiles.reshape(-1, _COLUMNS, height, width, 3).transpose(0, 2, 1, 3, 4)
    return Image.fromarray(rows.reshape(-1, _COLUMNS * width, 3))
