"""The parser of a run's configuration: YAML and command line, one line for every mistake in them.

Each part is a frozen dataclass that lives beside the component it configures; a class is selected by `class_path` with
`init_args`. jsonargparse derives the file format, the command line, the help and the checks from these.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from pydoc import locate
from typing import Any, get_args, get_type_hints

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace, lazy_instance, set_parsing_settings

from ldm_ae.core.deprecation import rename_arguments, rename_keys, warn_renamed
from ldm_ae.core.errors import UserError, printable
from ldm_ae.core.registry import PLUGINS, Registry, class_paths, full_name, unknown_name
from ldm_ae.data.config import DataConfig
from ldm_ae.discriminators import DISCRIMINATORS, Discriminator
from ldm_ae.losses import ADVERSARIAL_LOSSES, PERCEPTUAL_LOSSES, RECONSTRUCTION_LOSSES, ObjectiveConfig
from ldm_ae.models import AUTOENCODERS, Autoencoder
from ldm_ae.quantizers import QUANTIZERS
from ldm_ae.regularizers import REGULARIZERS, Identity, Regularizer
from ldm_ae.training.changes import RENAMED
from ldm_ae.training.config import TrainingConfig
from ldm_ae.training.optimizers import OptimizerConfig

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
