"""One training run: the configuration of each of its phases is parsed, built and checked, then trained.

`parsing.py` reads YAML and the command line; here are the checks that span parts. `phases.py` describes phases.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from pydoc import locate
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, set_seed
from jsonargparse import ArgumentParser, Namespace

from ldm_ae.core.allocator import keep_freed_memory
from ldm_ae.core.devices import pick_device
from ldm_ae.core.errors import RunError, UserError, printable, reason, reportable
from ldm_ae.core.precision import Numerics, agreed_numerics
from ldm_ae.discriminators import with_aids
from ldm_ae.images.pixels import RGB
from ldm_ae.io.files import clear_leftovers, leaving_nothing, make_folder
from ldm_ae.losses import Likelihood, Objective
from ldm_ae.models import network_config
from ldm_ae.models.loading.checkpoints import CHECKPOINTS
from ldm_ae.models.trainable import set_trainable
from ldm_ae.regularizers import Identity
from ldm_ae.training.changes import check_place, hash_images, other_discriminator
from ldm_ae.training.checkpoints.checkpoint import Checkpoints, MismatchError
from ldm_ae.training.checkpoints.state import phase_and_step
from ldm_ae.training.configuration.keys import PHASES
from ldm_ae.training.configuration.parsing import RunConfig, config_parser, parse_config, saved_text
from ldm_ae.training.configuration.phases import each_phase
from ldm_ae.training.measured_pixels import with_measured_pixels
from ldm_ae.training.monitoring.banner import Banner, closing_lines
from ldm_ae.training.monitoring.samples import Samples
from ldm_ae.training.monitoring.trackers import check_trackers, make_trackers, start_trackers
from ldm_ae.training.only_run import only_run
from ldm_ae.training.phases import FOLDER, Phase, continue_from
from ldm_ae.training.record import Record
from ldm_ae.training.recorded import recorded_numerics
from ldm_ae.training.requirements import fit_images, require_weights
from ldm_ae.training.sizes import check_sizes
from ldm_ae.training.time_limit import has_ended
from ldm_ae.training.trainer import Trainer
from ldm_ae.training.validation import check_best, choose_metrics


def list_phases(config: Namespace, parser: ArgumentParser) -> list[Phase]:
    """Return the phases of a configuration that `parse_config` returned."""
    if not config.get(PHASES):
        return [Phase(config=config)]
    trees = each_phase(yaml.safe_load(saved_text(config, parser)))
    return [
        Phase(number=number, count=len(trees), config=parser.parse_object(tree), overrides=overrides)
        for number, (tree, overrides) in enumerate(zip(trees, config[PHASES], strict=True), start=1)
    ]


def build_config(
    config: Namespace, parser: ArgumentParser | None = None, *, seed: int | None = None, start: Path | None = None
) -> RunConfig:
    """Build every class of the configuration; the initial weights are a function of the seed.

    Args:
        config: The configuration of a run, or of one of its phases.
        parser: The parser that read it.
        seed: Replaces the configuration's.
        start: A model folder whose weights and scale replace those of the model.

    Raises:
        UserError: A class refuses its values, or a check over several of them does.
    """
    set_seed(config.seed if seed is None else seed)
    try:
        built = (parser or config_parser()).instantiate(
            config, instantiators=[(partial(_construct, config), object, True)]
        )
    except ValueError as error:  # jsonargparse's own, around an error that a class raised
        raise reportable(error) or error from None
    run = RunConfig(**{name: built[name] for name in RunConfig.__dataclass_fields__})
    run = replace(run, discriminator=with_aids(run.discriminator, run.discriminator_aids))
    if start is not None:
        continue_from(run.model, start)
    check(run)
    return run


def _construct(config: Namespace, cls: type[Any], **values: Any) -> Any:
    """Return an object of a configured class. A refusal becomes a UserError with the key and the values."""
    try:
        return cls(**values)
    except (UserError, RunError):
        raise
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        why = reason(error)
        # The values that the message mentions, or else all.
        mentioned = {name: v for name, v in values.items() if name in why or (isinstance(v, str) and v in why)}
        given = ", ".join(f"{name}={value!r}" for name, value in (mentioned or values).items())
        paths = [key for key, value in config.items() if key.endswith("class_path") and locate(str(value)) is cls]
        key = f"{paths[0].removesuffix('class_path')}init_args: " if paths else ""
        raise UserError(f"{key}{cls.__name__} cannot be built from {printable(given, 300)}: {why}") from error


def check(run: RunConfig) -> None:
    """Check the values that span several parts. The UserError names the keys."""
    square, sizes = (run.data.resolution, run.data.resolution), run.data.training_sizes()
    for size in [square, *sizes]:
        run.model.latent_spec.latent_size(*size)
    run.model.set_sample_size(run.data.resolution)
    run.optimizer.check_time("optimizer", run.training.max_minutes)
    if run.discriminator is not None:
        run.discriminator_optimizer.check_time("discriminator_optimizer", run.training.max_minutes)
    fit_images(run.model, run.objective, run.discriminator, run.regularizer)
    validation = choose_metrics(run.training.best_metric, run.objective.perceptual)
    if run.data.validation_images == 0 and run.training.best_metric != "psnr":
        raise UserError("training.best_metric has no effect without validation: data.validation_images is 0")
    if run.data.validation_images > 0:
        check_best(
            validation, resolution=run.data.resolution, images=run.data.validation_images,
            pixels=run.model.pixel_spec, view=run.objective.view,
        )  # fmt: skip
    set_trainable(run.model, run.training.trainable)  # as the trainer will
    if run.optimizer.averages_weights():
        for name, chosen in (("ema_decay", run.training.ema_decay is not None), ("power_ema", run.training.power_ema)):
            if chosen:
                raise UserError(
                    f"training.{name} has no place beside {run.optimizer.class_path}, which averages the weights "
                    f"itself; set training.{name} to {'null' if name == 'ema_decay' else 'false'}"
                )
    require_weights(run.model, run.regularizer, run.objective)
    run.regularizer.prepare(run.model)
    check_sizes(
        run.model, run.regularizer, run.objective, run.discriminator, run.training,
        sizes=sizes, resolution=run.data.resolution, validation=run.data.validation_images > 0,
    )  # fmt: skip


def train(arguments: Sequence[str], parser: ArgumentParser | None = None) -> Path:
    """Train as the command line specifies, and return the run directory.

    Raises:
        UserError: An error that the user can fix.
        RunError: The run cannot continue: repeated non-finite steps, or the disk is full.
        Stopped: A signal ended the run; it is saved.
    """
    parser = parser or config_parser()
    return train_parsed(parse_config(arguments, parser), parser)


def train_parsed(config: Namespace, parser: ArgumentParser) -> Path:
    """Train as the configuration that `parse_config` returned specifies; see `train`."""
    config = with_measured_pixels(config, parser)
    folder, phases = Path(config.out), list_phases(config, parser)
    check_place(
        folder, [place for phase in phases for place in (phase.config.data.train, phase.config.data.validation)]
    )
    check_trackers(config.training.trackers)
    banner = Banner(folder, phases)
    banner.print_plan()
    numerics = agreed_numerics(
        config.training.precision, pick_device(), recorded_numerics(folder), compiled=config.training.compile
    )
    banner.print_precision(numerics.line())
    with leaving_nothing(folder) as begun:
        make_folder(folder)
        accelerator = make_accelerator(config.training, folder, numerics)
        keep_freed_memory(accelerator.device)
        with only_run(folder, accelerator):
            checkpoints = Checkpoints(folder / CHECKPOINTS, keep=config.training.keep_checkpoints)
            current = find_phase(phases, folder, checkpoints, accelerator)
            begin = partial(_begin, folder=folder, parser=parser, accelerator=accelerator, numerics=numerics)
            for phase in phases[current.number :]:  # An error in a later phase is reported before the first step.
                begin(phase, checkpoints=None)
                release(accelerator, compiled=config.training.compile)
            trainer = begin(current, checkpoints=checkpoints)
            banner.print_parts(trainer)
            record = Record(folder, config, parser, phases, current)
            _resume(trainer, record)
            if broadcast_object_list([trainer.is_finished()])[0]:
                accelerator.end_training()
            else:
                # All checks have passed; from here on the run directory changes.
                start_trackers(accelerator, config.training, folder, record.now)
                begun()
                if accelerator.is_main_process:
                    record.write(trainer)
                trainer.fit()
                for phase in phases[current.number :]:
                    del trainer
                    release(accelerator, compiled=config.training.compile)
                    trainer = begin(phase, checkpoints=checkpoints)
                    banner.print_parts(trainer)
                    trainer.fit()
                accelerator.end_training()
            for line in closing_lines(trainer, phases[-1].config.data):
                trainer.log.print_line(line)
    return folder


def find_phase(phases: Sequence[Phase], folder: Path, checkpoints: Checkpoints, accelerator: Accelerator) -> Phase:
    """Return the phase that a run directory is in: the first one in a new run. Every process must call it.

    Raises:
        UserError: The newest checkpoint is of a phase that the configuration lacks.
    """
    if accelerator.is_main_process:
        for place in (folder, checkpoints.folder, folder / FOLDER):
            clear_leftovers(place)
    accelerator.wait_for_everyone()
    newest, _ = checkpoints.newest()
    if newest is None:
        return phases[0]
    number, step, seconds = phase_and_step(newest)
    if number > len(phases):
        has = "no phases" if len(phases) == 1 else f"{len(phases)} phases"
        raise UserError(
            f"{folder} is in phase {number} of its run, and the configuration has {has}; give another --out, or the "
            "configuration that the run was started with"
        )
    phase = phases[number - 1]
    is_over = has_ended(phase.config.training, step, seconds) and not phase.is_last and phase.result(folder).is_dir()
    return phases[number] if is_over else phase


def _begin(
    phase: Phase, *, folder: Path, parser: ArgumentParser, accelerator: Accelerator, numerics: Numerics,
    checkpoints: Checkpoints | None,
) -> Trainer:  # fmt: skip
    """Build a phase. Without `checkpoints` it is built only to be checked, and the model before it need not exist."""
    with phase.named():
        start = None if checkpoints is None else phase.start(folder)
        run = build_config(phase.config, parser, seed=phase.seed, start=start)
        return make_trainer(run, folder, accelerator, numerics, phase=phase, checkpoints=checkpoints)


def release(accelerator: Accelerator, *, compiled: bool) -> None:
    """Free what a phase has built; the trackers and the scale of the losses remain."""
    accelerator.free_memory()
    if compiled:  # graphs of the networks that are gone
        torch.compiler.reset()


def _resume(trainer: Trainer, record: Record) -> None:
    """Resume a trainer; the refusal of another discriminator names the changed settings."""
    try:
        with trainer.phase.named():
            trainer.resume()
    except MismatchError as error:
        if error.part != "discriminator" or record.before is None:
            raise
        raise other_discriminator(trainer.folder, record.changes(trainer.phase.number), error) from None


def make_accelerator(training: Any, folder: Path, numerics: Numerics) -> Accelerator:
    """Return an accelerator with this run's precision and trackers; `training` has the fields of `TrainingConfig`."""
    return Accelerator(
        # Accelerate assigns torchrun's processes one GPU each; without a GPU they would not form one group.
        cpu=pick_device().type == "cpu",
        mixed_precision=numerics.mixed_precision,
        log_with=make_trackers(training, folder) or None,
        project_dir=str(folder),
        # Buffers belong to batch normalization; synchronized ones are already equal, and writing them breaks the graph.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


def make_trainer(
    run: RunConfig, folder: Path, accelerator: Accelerator, numerics: Numerics, *, phase: Phase,
    checkpoints: Checkpoints | None = None,
) -> Trainer:  # fmt: skip
    """Return the trainer of a built configuration."""
    loader, validation = run.data.loaders(
        batch_size=run.training.batch_size, accumulation=run.training.accumulation, seed=phase.seed,
        rank=accelerator.process_index, world_size=accelerator.num_processes, pixels=run.model.pixel_spec,
    )  # fmt: skip
    samples = Samples(
        loader, validation, run.data.validation_transform(run.model.pixel_spec), batch_size=run.training.batch_size,
        autocast_dtype=None if numerics.precision == "fp32" else numerics.dtype, view=run.objective.view,
    )  # fmt: skip
    run.regularizer.count_images(len(loader.source))
    run.regularizer.verify(samples.pixel_values[:2])
    spec = run.model.latent_spec
    codes = "" if spec.codebook_size is None else f", {spec.codebook_size} codes"
    identity = {
        "seed": run.seed,
        "resolution": run.data.resolution,
        "data": hash_images(loader.source),
        "global_batch": loader.global_batch,
        "latents": f"{spec.channels} channels, downsample factor {spec.downsample_factor}{codes}",
        "network": json.dumps(network_config(run.model), sort_keys=True),
        "discriminator": None if run.discriminator is None else run.discriminator.identity,
        "optimizer": run.optimizer.class_path,
        "discriminator_optimizer": None if run.discriminator is None else run.discriminator_optimizer.class_path,
        "trainable": json.dumps(run.training.trainable),
        "learned_log_variance": run.objective.learned_log_variance,
        "ema": run.training.ema_decay is not None,
    }
    if isinstance(run.objective.reconstruction, Likelihood) and [*run.objective.reconstruction.parameters()]:
        identity["learned_scale"] = type(run.objective.reconstruction).__name__
    if run.model.pixel_spec != RGB:
        identity["pixels"] = json.dumps(run.model.pixel_spec.to_json(), sort_keys=True)
    if not isinstance(run.regularizer, Identity):
        identity["regularizer"] = run.regularizer.identity
    if run.training.power_ema:
        identity["power_ema"] = ", ".join(f"{length:g}" for length in run.training.power_ema_lengths)
    if loader.buckets is not None:
        identity["bucket_assignment"] = loader.buckets.identity()
    objective = Objective(run.objective, run.model.pixel_spec)
    if objective.likelihood is not None:
        objective.likelihood.continue_from(run.model.likelihood)
    return Trainer(
        folder=folder, accelerator=accelerator, numerics=numerics, autoencoder=run.model,
        objective=objective, regularizer=run.regularizer,
        discriminator=run.discriminator, training=run.training, optimizer=run.optimizer,
        discriminator_optimizer=run.discriminator_optimizer, loader=loader, validation=validation, samples=samples,
        identity=identity, phase=phase, checkpoints=checkpoints,
    )  # fmt: skip
