"""The settings of each phase from a recipe and a command line, and as a run records them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser

from ldm_ae.core.errors import UserError
from ldm_ae.training.configuration.parsing import config_parser, parse_config, saved_text
from ldm_ae.training.configuration.phases import differences, each_phase, settings
from ldm_ae.training.run import list_phases

pytestmark = pytest.mark.slow

RECIPE = """
out: runs/x
model: kl
data: {train: images, resolution: 64}
discriminator: {class_path: patchgan, init_args: {n_layers: 2}}
objective: {perceptual: lpips, regularization_weights: {kl: 1.0}}
optimizer: {class_path: adamw, learning_rate: 0.5}
phases:
- training: {max_steps: 10}
  discriminator: null
- training: {max_steps: 20, trainable: ["decoder.*"]}
  discriminator: {init_args: {ndf: 8}}
  objective: {perceptual: null, regularization_weights: {}}
  optimizer: sgd
  regularizer: noise
"""


@pytest.fixture(scope="module")
def parser() -> ArgumentParser:
    return config_parser()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def phases_of(path: Path, parser: ArgumentParser, *more: str) -> list[Any]:
    return [phase.config for phase in list_phases(parse_config(["--config", str(path), *more], parser), parser)]


def test_phase_overrides_the_recipe_like_a_further_file(recipe: Path, parser: ArgumentParser, tmp_path: Path) -> None:
    first, second = phases_of(recipe, parser)
    assert (first.discriminator, first.training.max_steps, first.objective.regularization_weights) == (
        None, 10, {"kl": 1.0},
    )  # fmt: skip
    assert first.objective.perceptual.class_path == "ldm_ae.losses.LPIPS"
    assert second.discriminator.init_args.n_layers == 2
    assert second.discriminator.init_args.ndf == 8
    assert (second.objective.perceptual, second.objective.regularization_weights) == (None, {})
    assert (second.optimizer.class_path, second.optimizer.learning_rate) == ("torch.optim.SGD", 0.5)
    (tmp_path / "phase.yaml").write_text(yaml.safe_dump(yaml.safe_load(RECIPE)["phases"][1]))
    one = parse_config(
        ["--config", str(recipe), "--config", str(tmp_path / "phase.yaml"), "--phases", "[]"], parser
    ).as_dict()
    assert settings(json.loads(json.dumps(second.as_dict(), default=str))) == settings(
        json.loads(json.dumps(one, default=str))
    )


def test_command_line_overrides_every_phase_and_an_option_of_a_phase_overrides_it(
    recipe: Path, parser: ArgumentParser
) -> None:
    found = phases_of(recipe, parser, "--training.max_steps", "3", "--phases.2.training.max_steps=4",
                      "--phases.1.discriminator", "sn-patchgan", "--phases.1.discriminator.ndf", "16")  # fmt: skip
    assert [phase.training.max_steps for phase in found] == [3, 4]
    assert [phase.discriminator.class_path.rpartition(".")[2] for phase in found] == [
        "SpectralPatchDiscriminator", "PatchDiscriminator",
    ]  # fmt: skip
    assert [phase.discriminator.init_args.ndf for phase in found] == [16, 8]


def test_recorded_configuration_gives_the_same_phases(recipe: Path, parser: ArgumentParser, tmp_path: Path) -> None:
    config = parse_config(["--config", str(recipe), "--training.batch_size", "3"], parser)
    text = saved_text(config, parser)
    (tmp_path / "config.yaml").write_text(text)
    again = parse_config(["--config", str(tmp_path / "config.yaml")], parser)
    assert saved_text(again, parser) == text
    assert [phase.config for phase in list_phases(again, parser)] == [
        phase.config for phase in list_phases(config, parser)
    ]
    recorded = yaml.safe_load(text)["phases"]
    assert recorded[0] == {"discriminator": None, "training": {"max_steps": 10}}


def test_recorded_configuration_without_phases_does_not_mention_them(recipe: Path, parser: ArgumentParser) -> None:
    config = parse_config(["--config", str(recipe), "--phases", "[]"], parser)
    assert "phases" not in saved_text(config, parser)
    assert len(list_phases(config, parser)) == 1
    assert list_phases(config, parser)[0].config is config


def test_phases_of_a_later_file_replace_those_of_an_earlier_one(
    recipe: Path, parser: ArgumentParser, tmp_path: Path
) -> None:
    (tmp_path / "more.yaml").write_text("phases: [{training: {max_steps: 7}}]\n")
    found = phases_of(recipe, parser, "--config", str(tmp_path / "more.yaml"))
    assert [phase.training.max_steps for phase in found] == [7]
    found = phases_of(recipe, parser, "--phases+", "[{training: {max_steps: 7}}]")
    assert [phase.training.max_steps for phase in found] == [10, 20, 7]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--phases.3.training.max_steps", "1"],
            "--phases.3.training.max_steps: the configuration has 2 phases, which",
        ),
        (
            ["--phases.0.training.max_steps", "1"],
            "--phases.0.training.max_steps: the configuration has 2 phases, which",
        ),
        (["--phases", "[]", "--phases.1.seed", "1"], "--phases.1.seed: the configuration has no phases"),
        (["--phases", "3"], "phases: expected a list of phases, each with its keys, got 3"),
        (["--phases.2.seed", "1"], "phase 2 sets seed, which all phases of a run share"),
        (["--phases.2.model", "dc"], "phase 2 sets model, which all phases of a run share"),
        (["--phases.2.training.max_steps", "many"], "^phases.2.training.max_steps: expected int, got many"),
        (
            ["--phases.2.data.train", "???"],
            "^phases.2.data.train is not set, and the recipe has no value for it; add --",
        ),
        (["--data.train", "???"], "^data.train is not set, and the recipe has no value for it; add --data.train VALUE"),
        (["--phases.2.data.resolution", "null"], "phases.2.data.resolution"),
    ],
)
def test_wrong_phases_are_refused_by_name(
    recipe: Path, parser: ArgumentParser, arguments: list[str], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        parse_config(["--config", str(recipe), *arguments], parser)


def test_print_config_prints_the_phases_with_the_options(
    recipe: Path, parser: ArgumentParser, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_config(["--config", str(recipe), "--phases.2.training.max_steps", "4", "--print_config"], parser)
    printed = yaml.safe_load(capsys.readouterr().out)
    assert [phase["training"]["max_steps"] for phase in each_phase(printed)] == [10, 4]


def test_lists_of_classes_are_settings_of_a_phase(recipe: Path, parser: ArgumentParser, tmp_path: Path) -> None:
    phases = [
        {"regularizer": ["eq-vae", "noise"], "discriminator_aids": ["diffaug"]},
        {"discriminator_aids": [{"class_path": "lecam", "init_args": {"weight": 0.5}}],
         "optimizer": {"groups": [{"patterns": ["*.bias"], "options": {"weight_decay": 0.0}}]}},
    ]  # fmt: skip
    recipe.write_text(yaml.safe_dump(yaml.safe_load(RECIPE) | {"phases": phases}))
    first, second = phases_of(recipe, parser, "--phases.2.discriminator_aids+", "lecam")
    assert [part.class_path for part in first.regularizer.init_args.regularizers] == [
        "ldm_ae.regularizers.EQVAE", "ldm_ae.regularizers.GaussianNoise",
    ]  # fmt: skip
    assert [aid.class_path for aid in first.discriminator_aids] == ["ldm_ae.discriminators.DiffAug"]
    assert [aid.init_args.weight for aid in second.discriminator_aids] == [0.5, 0.001]
    assert second.optimizer.groups[0].options == {"weight_decay": 0.0}


def test_differences_are_undone_by_the_recipe() -> None:
    recipe = {"seed": 0, "training": {"max_steps": 3, "compile": False}, "discriminator": {"class_path": "a"}}
    phase = {"seed": 0, "training": {"max_steps": 5, "compile": False}, "discriminator": None}
    found = differences(recipe, phase)
    assert found == {"training": {"max_steps": 5}, "discriminator": None}
    assert each_phase(recipe | {"phases": [found, {}]}) == [phase, recipe]
