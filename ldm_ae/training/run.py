"""The tree of one run's configuration: YAML, command line, and the checks that span parts.

Each part is a frozen dataclass that lives beside the component it configures; a class is selected by `class_path` with
`init_args`. jsonargparse derives the file format, the command line, the help and the checks from these.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, is_dataclass
from functools import partial
from pathlib import Path
from pydoc import locate
from typing import Any, get_args, get_type_hints

import yaml
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, LoggerType, broadcast_object_list, set_seed
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace, lazy_instance, set_parsing_settings

from ldm_ae.core.allocator import keep_freed_memory
from ldm_ae.core.deprecation import rename_arguments, rename_keys, warn_renamed
from ldm_ae.core.devices import pick_device
from ldm_ae.core.errors import RunError, UserError, printable, reason, told
from ldm_ae.core.precision import Numerics, agreed_numerics
from ldm_ae.core.registry import PLUGINS, Registry, class_paths, full_name, unknown_name
from ldm_ae.data.config import DataConfig
from ldm_ae.discriminators import DISCRIMINATORS, Discriminator
from ldm_ae.io.files import leaving_nothing, make_folder, writing
from ldm_ae.io.locks import only_writer
from ldm_ae.losses import (
    ADVERSARIAL_LOSSES,
    PERCEPTUAL_LOSSES,
    RECONSTRUCTION_LOSSES,
    Objective,
    ObjectiveConfig,
)
from ldm_ae.models import AUTOENCODERS, Autoencoder, network_config
from ldm_ae.models.trainable import set_trainable
from ldm_ae.quantizers import QUANTIZERS
from ldm_ae.regularizers import REGULARIZERS, Identity, Regularizer
from ldm_ae.training import OptimizerConfig, Trainer, TrainingConfig
from ldm_ae.training.changes import (
    CONFIG,
    RENAMED,
    changed_settings,
    check_place,
    hash_images,
    other_discriminator,
    saved_config,
)
from ldm_ae.training.checkpoints.checkpoint import UnfitError
from ldm_ae.training.recorded import recorded_numerics
from ldm_ae.training.sizes import check_sizes
from ldm_ae.training.validation import check_best, choose_metrics

NOT_GIVEN = "???"
"""The value in a recipe that the user must supply."""

REGISTRIES: dict[str, Registry[Any]] = {
    "model": AUTOENCODERS,
    "quantizer": QUANTIZERS,
    "regularizer": REGULARIZERS,
    "discriminator": DISCRIMINATORS,
    "reconstruction": RECONSTRUCTION_LOSSES,
    "perceptual": PERCEPTUAL_LOSSES,
    "adversarial": ADVERSARIAL_LOSSES,
}
"""The registry in which a configuration's class is looked up, by the last part of its key."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run."""

    out: str
    """The run directory; a run that is there is continued."""
    model: Autoencoder
    """The autoencoder."""
    data: DataConfig
    """Images."""
    seed: int = 0
    """Of the initial weights, the order of the images, their crops and the posterior's draws."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """The generator's losses."""
    regularizer: Regularizer = field(default_factory=lambda: lazy_instance(Identity))
    """Changes latents or targets between encoder and decoder; does nothing by default."""
    discriminator: Discriminator | None = None
    """None for training without an adversarial loss."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The autoencoder's."""
    discriminator_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The discriminator's."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Steps, precision, intervals."""


def config_parser(description: str = "Train an autoencoder.", **kwargs: Any) -> ArgumentParser:
    """Return a parser of RunConfig: `--config FILE` and every key as an option, which overrides the file."""
    # A configuration can import registered classes only, even if other modules can be imported here.
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=_allowed_paths())
    parser = ArgumentParser(description=description, exit_on_error=False, allow_abbrev=False, **kwargs)
    parser.add_argument(
        "--config", action=ActionConfigFile, help="a YAML file of these options, such as configs/kl_f8.yaml"
    )
    parser.add_class_arguments(RunConfig, None, fail_untyped=True)
    return parser


def _allowed_paths() -> list[str]:
    """Return the class paths of registered classes, and of the dataclasses among their arguments."""
    found: dict[type[Any], None] = {}
    for cls in (cls for registry in REGISTRIES.values() for cls in registry.classes()):
        try:
            hints = get_type_hints(cls.__init__).values()
        except NameError as error:
            raise UserError(f"{full_name(cls)} has an annotation that cannot be resolved: {error}") from error
        parts = (part for hint in hints for part in get_args(hint) if isinstance(part, type))
        found |= dict.fromkeys([cls, *(part for part in parts if is_dataclass(part))])
    return [path for cls in found for path in class_paths(cls)]


def parse_config(arguments: Sequence[str], parser: ArgumentParser | None = None) -> Namespace:
    """Return the checked, resolved configuration, without building anything.

    Raises:
        UserError: An unknown key (with the nearest valid one), a wrong type, a missing value, no such file.
    """
    parser = parser or config_parser()
    for argument, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument == "--config" and not Path(value).is_file():
            raise UserError(f"no such configuration file: {value}")
    try:
        config = parser.parse_args(_renamed(arguments))
    except (ArgumentError, TypeError, ValueError, yaml.YAMLError) as error:
        raise _unregistered(error) or UserError(explain(error, _known_keys(parser))) from error
    except RecursionError as error:
        raise UserError("the configuration is nested too deeply") from error
    for key, value in config.items():
        if value == NOT_GIVEN:
            raise UserError(f"{key} is not given, and the recipe leaves it to you: add --{key} VALUE")
        if value is None and not _takes_none(key, config, parser):
            raise UserError(f"{key} is empty; give it a value, or leave it out")
    return config


def _renamed(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with old names replaced by new ones, also in the files that `--config` names."""
    found = rename_arguments(arguments, RENAMED)
    for place, argument in enumerate(found):
        option, _, path = argument.partition("=")
        if option == "--config" and (file := Path(path or found[place + 1])).is_file():
            content = yaml.safe_load(file.read_bytes())
            if old := rename_keys(content, RENAMED) if isinstance(content, dict) else []:
                for key in old:
                    warn_renamed(f"{key} of {file}", RENAMED[key])
                found[place if path else place + 1] = ("--config=" if path else "") + json.dumps(content)
    return found


def _takes_none(key: str, config: Namespace, parser: ArgumentParser) -> bool:
    """Return whether null is among the types of a key; jsonargparse accepts it for any."""
    hint = next((getattr(action, "_typehint", None) for action in parser._actions if action.dest == key), None)
    if hint is None and ".init_args." in key:
        owner, _, name = key.rpartition(".init_args.")
        cls: Any = locate(config[f"{owner}.class_path"])
        hint = get_type_hints(cls.__init__).get(name)
    return hint is None or hint is Any or type(None) in get_args(hint)


def _unregistered(error: Exception) -> UserError | None:
    """Return the refusal of a class that is not registered, from jsonargparse's message; None for another error."""
    text = " ".join(str(error).split())
    match = re.search(r"Importing '([^']+)' is not allowed|Expected a dot import path string: (\S+)", text)
    keys = re.findall(r'Parser key "([^"]+)"', text[: match.start()]) if match else []
    registry = REGISTRIES.get(keys[-1].rpartition(".")[2]) if keys else None
    if match is None or registry is None:
        return None
    refusal = unknown_name(registry.kind, match[1] or match[2], [cls.__name__ for cls in registry.classes()])
    return UserError(f"{keys[-1]}: {refusal}\na class of another package needs an entry point of the group {PLUGINS}")


def explain(error: Exception, known: Sequence[str]) -> str:
    """Return jsonargparse's message in one or two lines, with the nearest valid key for an unknown one."""
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    if match := re.search(
        r"[Oo]ption '?([\w.\-]+)'? is not accepted|accept option '([\w.\-]+)'|arguments?: --([\w.\-]+)", text
    ):
        key = next(group for group in match.groups() if group)
        leaves = {name.rpartition(".")[2]: name for name in known}
        if near := difflib.get_close_matches(key, known, n=1):
            text += f"; did you mean '{near[0]}'?"
        elif near := difflib.get_close_matches(key.rpartition(".")[2], leaves, n=1):
            text += f"; did you mean '{leaves[near[0]]}'?"
    return printable(text, 400)


def _known_keys(parser: ArgumentParser) -> list[str]:
    keys = [action.dest for action in parser._actions if action.dest not in ("help", "config")]
    for cls in (cls for registry in REGISTRIES.values() for cls in registry.classes()):
        keys += list(inspect.signature(cls).parameters)
    return keys


def save_config(parser: ArgumentParser, config: Namespace, path: Path) -> None:
    """Write the resolved configuration as YAML that reruns the run."""
    text = parser.dump(config)
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _as_saved(parser: ArgumentParser, config: Namespace) -> dict[str, Any]:
    """Return the configuration as `saved_config` would read it back."""
    found: dict[str, Any] = yaml.safe_load(parser.dump(config))
    return found


def build_config(config: Namespace, parser: ArgumentParser | None = None) -> RunConfig:
    """Build every class of the configuration; the initial weights are a function of `seed`.

    Raises:
        UserError: A class refuses its values, or a check over several of them does.
    """
    set_seed(config.seed)
    try:
        built = (parser or config_parser()).instantiate(
            config, instantiators=[(partial(_construct, config), object, True)]
        )
    except ValueError as error:  # jsonargparse's own, around an error that a class raised
        raise told(error) or error from None
    run = RunConfig(**{name: built[name] for name in RunConfig.__dataclass_fields__})
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
        spoken_of = {name: v for name, v in values.items() if name in why or (isinstance(v, str) and v in why)}
        given = ", ".join(f"{name}={value!r}" for name, value in (spoken_of or values).items())
        paths = [key for key, value in config.items() if key.endswith("class_path") and locate(str(value)) is cls]
        key = f"{paths[0].removesuffix('class_path')}init_args: " if paths else ""
        raise UserError(f"{key}{cls.__name__} cannot be built from {printable(given, 300)}: {why}") from error


def check(run: RunConfig) -> None:
    """Check the values that span several parts. The UserError names the keys."""
    run.model.latent_spec.latent_size(run.data.resolution, run.data.resolution)
    run.model.set_sample_size(run.data.resolution)
    validation = choose_metrics(run.training.best_metric, run.objective.perceptual)
    if run.data.validation_images == 0 and run.training.best_metric != "psnr":
        raise UserError("training.best_metric has no effect without validation: data.validation_images is 0")
    if run.data.validation_images > 0:
        check_best(validation, resolution=run.data.resolution, images=run.data.validation_images)
    set_trainable(run.model, run.training.trainable)  # as the trainer will
    for term in sorted(run.model.needed_terms()):
        if not run.objective.regularization_weights.get(term, 0.0) > 0:
            raise UserError(
                f"objective.regularization_weights has no weight for '{term}', without which the codes do not learn; "
                f"add {term}: 1.0, or freeze them with training.trainable"
            )
    check_sizes(
        run.model, run.regularizer, run.objective, run.discriminator, run.training,
        resolution=run.data.resolution, validation=run.data.validation_images > 0,
    )  # fmt: skip
    _check_trackers(run.training.trackers)


def _check_trackers(names: Sequence[str]) -> None:
    """Raise `UserError` for a tracker that Accelerate lacks or ignores because its package is not installed."""
    known = {*LOGGER_TYPE_TO_CLASS, "all"}
    installed = sorted(str(name) for name in get_available_trackers())
    for name in names:
        if name not in known:
            raise UserError(
                f"training.trackers has '{name}', which Accelerate does not know; it knows {', '.join(sorted(known))}, "
                f"of which {', '.join(installed) or 'none'} can be used here"
            )
        if name in LoggerType and name not in ("all", *installed):
            raise UserError(
                f"training.trackers has '{name}', which is not installed: pip install it, or use "
                f"{', '.join(installed) or 'none'} (metrics.jsonl is always written)"
            )


def train(arguments: Sequence[str], parser: ArgumentParser | None = None) -> Path:
    """Train as the command line specifies, and return the run directory.

    Raises:
        UserError: An error that the user can fix.
        RunError: The run cannot continue: repeated non-finite steps, or the disk is full.
        Stopped: A signal ended the run; it is saved.
    """
    parser = parser or config_parser()
    config = parse_config(arguments, parser)
    run = build_config(config, parser)
    folder = Path(config.out)
    numerics = agreed_numerics(
        run.training.precision, pick_device(), recorded_numerics(folder), compiled=run.training.compile
    )
    check_place(folder, [run.data.train, run.data.validation])
    with leaving_nothing(folder) as begun:
        make_folder(folder)
        accelerator = make_accelerator(run.training, folder, numerics)
        keep_freed_memory(accelerator.device)
        with _only_run(folder, accelerator):
            trainer = make_trainer(run, folder, accelerator, numerics)
            before = saved_config(folder)
            try:
                trainer.resume()
            except UnfitError as error:
                if error.part != "discriminator" or before is None:
                    raise
                raise other_discriminator(folder, changed_settings(before, _as_saved(parser, config)), error) from None
            # All checks have passed; from here on the run directory changes.
            begun()
            accelerator.init_trackers("logs")
            if accelerator.is_main_process:
                save_config(parser, config, folder / CONFIG)
                if before is not None and trainer.step:
                    trainer.log.changes(trainer.step, changed_settings(before, saved_config(folder) or {}))
            trainer.fit()
    return folder


@contextmanager
def _only_run(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Hold the folder's lock in the main process; where it is refused, all processes raise the same UserError."""
    with ExitStack() as stack:
        refused = ""
        if accelerator.is_main_process:
            try:
                stack.enter_context(only_writer(folder))
            except UserError as error:
                refused = str(error)
        if refusal := broadcast_object_list([refused])[0]:
            raise UserError(refusal)
        yield


def make_accelerator(training: TrainingConfig, folder: Path, numerics: Numerics) -> Accelerator:
    """Return an accelerator with this run's precision and trackers."""
    return Accelerator(
        # Accelerate assigns torchrun's processes one GPU each; without a GPU they would not form one group.
        cpu=pick_device().type == "cpu",
        mixed_precision=numerics.mixed_precision,
        log_with=list(training.trackers) or None,
        project_dir=str(folder),
        # Buffers belong to batch normalization; synchronized ones are already equal, and writing them breaks the graph.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


def make_trainer(run: RunConfig, folder: Path, accelerator: Accelerator, numerics: Numerics) -> Trainer:
    """Return the trainer of a built configuration."""
    loader, validation = run.data.loaders(
        batch_size=run.training.batch_size, accumulation=run.training.accumulation, seed=run.seed,
        rank=accelerator.process_index, world_size=accelerator.num_processes,
    )  # fmt: skip
    spec = run.model.latent_spec
    codes = "" if spec.codebook_size is None else f", {spec.codebook_size} codes"
    identity = {
        "seed": run.seed,
        "resolution": run.data.resolution,
        "data": hash_images(loader.source),
        "global_batch": loader.global_batch,
        "latents": f"{spec.channels} channels, downsample factor {spec.downsample_factor}{codes}",
        "network": json.dumps(network_config(run.model), sort_keys=True),
        "discriminator": None if run.discriminator is None else type(run.discriminator).__name__,
        "optimizer": run.optimizer.class_path,
        "discriminator_optimizer": None if run.discriminator is None else run.discriminator_optimizer.class_path,
        "trainable": json.dumps(run.training.trainable),
        "learned_log_variance": run.objective.learned_log_variance,
        "ema": run.training.ema_decay is not None,
    }
    if not isinstance(run.regularizer, Identity):
        identity["regularizer"] = type(run.regularizer).__name__
    return Trainer(
        folder=folder, accelerator=accelerator, numerics=numerics, autoencoder=run.model,
        objective=Objective(run.objective), regularizer=run.regularizer,
        discriminator=run.discriminator, training=run.training, optimizer=run.optimizer,
        discriminator_optimizer=run.discriminator_optimizer, loader=loader, validation=validation, identity=identity,
    )  # fmt: skip
