"""The parser of a run's configuration: YAML and command line, one line for every mistake in them.

Each part is a frozen dataclass that lives beside the component it configures; a class is selected by `class_path` with
`init_args`. jsonargparse derives the file format, the command line, the help and the checks from these.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass
from pydoc import locate
from typing import Any, get_args, get_type_hints

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from ldm_ae.core.defaults import default_of
from ldm_ae.core.errors import UserError, reportable
from ldm_ae.core.registry import class_paths, full_name
from ldm_ae.core.resources import with_config_paths
from ldm_ae.data.config import DataConfig
from ldm_ae.discriminators import Discriminator, DiscriminatorAid
from ldm_ae.losses.objective import ObjectiveConfig
from ldm_ae.losses.schedules import WeightSchedule
from ldm_ae.models import Autoencoder
from ldm_ae.regularizers import Identity, Regularizer
from ldm_ae.training.config import TrainingConfig
from ldm_ae.training.configuration.config_file import ConfigFile
from ldm_ae.training.configuration.explain import explain
from ldm_ae.training.configuration.full_names import REGISTRIES, full_names, full_names_in
from ldm_ae.training.configuration.help_format import KeysFormatter, help_of_group, lay_out
from ldm_ae.training.configuration.keys import PHASES, groups, of_phase
from ldm_ae.training.configuration.phases import check_shared, differences, full_tree, given_phases
from ldm_ae.training.configuration.spelling import asks_for_help, check_spelling, options
from ldm_ae.training.optimizers import OptimizerConfig
from ldm_ae.training.parameter_groups import ParameterGroup

NOT_GIVEN = "???"
"""The value in a recipe that the user must supply."""
_PRINT = "--print_config"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run."""

    out: str
    """Run directory; an existing run in it is resumed."""
    model: Autoencoder
    """Autoencoder."""
    data: DataConfig
    """Training and validation images."""
    seed: int = 0
    """Seed of the initial weights, the order of the images, their crops and the posterior's draws."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """Losses of the generator."""
    regularizer: Regularizer = field(default_factory=default_of(Identity))
    """Module that changes latents or targets between encoder and decoder; the default changes nothing."""
    discriminator: Discriminator | None = None
    """Discriminator; null trains without an adversarial loss."""
    discriminator_aids: list[DiscriminatorAid] = field(default_factory=list)
    """Augmentations and penalties beside the discriminator, in this order."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer of the autoencoder."""
    discriminator_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer of the discriminator."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Training loop: steps, precision, intervals."""
    phases: list[dict[str, Any]] = field(default_factory=list)
    """Phases that the run consists of, in order, each with the keys that it sets otherwise than the rest of the recipe,
    such as {training: {max_steps: 1000}}; --phases.2.training.max_steps 100 sets a key of the second one. An empty list
    trains the recipe as it is."""


def config_parser(description: str = "Train an autoencoder.", **kwargs: Any) -> ArgumentParser:
    """Return a parser of RunConfig: `--config FILE` and every key as an option, which overrides the file."""
    _allow_registered_classes()
    parser = _Parser(
        description=f"{description} Every key of a configuration is an option, which overrides the file: "
        "`training: {max_steps: 100}` is --training.max_steps 100. `--training.help` shows one group of keys, "
        "`--model.help kl` the arguments of one class.",
        usage="%(prog)s --config RECIPE --data.train IMAGES [--KEY VALUE ...]",
        exit_on_error=False,
        allow_abbrev=False,
        **kwargs,
    )
    parser.add_argument(
        "--config",
        action=ActionConfigFile,
        metavar="RECIPE",
        help="a recipe, such as kl_f8, or a YAML file of these keys; a later one overrides an earlier one",
    )
    parser.add_class_arguments(RunConfig, None, fail_untyped=True)
    (print_config,) = (action for action in parser._actions if action.dest == "print_config")
    print_config.help = "print the configuration of the other arguments with all defaults, and exit"
    lay_out(parser)
    return parser


def parts_parser(parts: type[Any]) -> ArgumentParser:
    """Return a parser of a dataclass with some of RunConfig's fields, for a part of a recorded configuration."""
    _allow_registered_classes()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(parts, None, fail_untyped=True)
    return parser


def _allow_registered_classes() -> None:
    """Let a configuration import registered classes only, even if other modules can be imported here."""
    set_parsing_settings(
        import_path_denylist=["*"], import_path_allowlist=_allowed_paths(), docstring_parse_attribute_docstrings=True
    )


class _Parser(ArgumentParser):
    """A parser whose help has our layout; jsonargparse makes the help of a class with the same type of parser."""

    def __init__(self, **kwargs: Any):
        super().__init__(**{"formatter_class": KeysFormatter, **kwargs})


def _allowed_paths() -> list[str]:
    """Return the class paths of registered classes, and of the dataclasses in lists and among their arguments."""
    found: dict[type[Any], None] = {ParameterGroup: None, WeightSchedule: None}
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
    arguments = with_config_paths(arguments)
    files = [] if asks_for_help(arguments) else check_spelling(arguments)
    for option, _ in options(arguments):
        if (group := option.removesuffix(".help")) != option and group in groups():
            print(help_of_group(parser, group))
            raise SystemExit(0)
    if any(option.split(".")[0] == PHASES for option, _ in options(arguments)) or any(map(_has_phases, files)):
        return _parse_phases(arguments, parser, files)
    with _explaining(files, arguments):
        given = full_names(arguments)
    config = _parse(given, parser, files, arguments)
    for key, value in config.items():
        _require_value(key, value, config, parser)
    return config


def _has_phases(file: ConfigFile) -> bool:
    return file.place(PHASES) is not None


def _parse_phases(arguments: Sequence[str], parser: ArgumentParser, files: Sequence[ConfigFile]) -> Namespace:
    """Return the configuration of a recipe with phases; `phases` lists the differences of each from the recipe."""
    with _explaining(files, arguments):
        given = given_phases(arguments)
        head, tail = full_names(given.files), full_names(given.options)
    prints = [argument for argument in (*head, *tail) if argument.partition("=")[0] == _PRINT]
    head, tail = ([argument for argument in part if argument not in prints] for part in (head, tail))
    config = _parse([*head, *tail], parser, files, arguments)
    found = []
    for number, content in enumerate(given.phases, start=1):
        # A phase stands between the files and the options, which override it.
        try:
            file, following = full_names_in(content, f"phase {number}")
            own = full_names(given.of_phases.get(number, []))
        except UserError as error:
            raise UserError(f"phase {number}: {error}") from None
        words = [*head, f"--config={json.dumps(file, default=str)}", *following, *tail, *own]
        found.append(_parse(words, parser, files, arguments, number))
    recipe = full_tree(config)
    config.phases = [differences(recipe, full_tree(phase)) for phase in found]
    check_shared(config.phases, [file.place for file in files])
    if prints:
        _parse([*head, *tail, f"--{PHASES}={json.dumps(config.phases)}", *prints], parser, files, arguments)
    for number, phase in enumerate(found, start=1):
        for key, value in phase.items():
            shared = key in config and config[key] == value
            _require_value(key, value, phase, parser, "" if shared else of_phase(number))
    return config


def saved_text(config: Namespace, parser: ArgumentParser) -> str:
    """Return the configuration as `config.yaml` records it; without phases it does not mention them."""
    recipe = config.clone()
    phases = recipe.pop(PHASES)
    # Without its null a key whose default is another value would have that value in a rerun.
    return parser.dump(recipe, skip_unset=False) + (yaml.safe_dump({PHASES: phases}, sort_keys=False) if phases else "")


def _parse(
    given: Sequence[str], parser: ArgumentParser, files: Sequence[ConfigFile], arguments: Sequence[str],
    phase: int | None = None,
) -> Namespace:  # fmt: skip
    """Return the configuration of arguments with full names; `arguments` are those that the user gave."""
    with _explaining(files, arguments, phase):
        return parser.parse_args([*given])


@contextmanager
def _explaining(files: Sequence[ConfigFile], arguments: Sequence[str], phase: int | None = None) -> Iterator[None]:
    """Turn the errors of parsers within the block into a UserError that names the place in a file or an option."""
    try:
        yield
    except (ArgumentError, TypeError, ValueError, yaml.YAMLError) as error:
        raise reportable(error) or explain(error, files, arguments, phase) from error
    except RecursionError as error:
        raise UserError("the configuration is nested too deeply") from error


def _require_value(key: str, value: Any, config: Namespace, parser: ArgumentParser, prefix: str = "") -> None:
    """Raise `UserError` for a key that has no value."""
    if value == NOT_GIVEN:
        raise UserError(f"{prefix}{key} is not set, and the recipe has no value for it; add --{prefix}{key} VALUE")
    if value is None and not _takes_none(key, config, parser):
        raise UserError(f"{prefix}{key} is empty; give it a value, or remove it")


def _takes_none(key: str, config: Namespace, parser: ArgumentParser) -> bool:
    """Return whether null is among the types of a key; jsonargparse accepts it for any."""
    hint = next((getattr(action, "_typehint", None) for action in parser._actions if action.dest == key), None)
    if hint is None and ".init_args." in key:
        owner, _, name = key.rpartition(".init_args.")
        cls: Any = locate(config[f"{owner}.class_path"])
        hint = get_type_hints(cls.__init__).get(name)
    return hint is None or hint is Any or type(None) in get_args(hint)
