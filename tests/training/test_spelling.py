"""Names in a configuration: what is refused before anything slow is imported, and what the message says."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm_ae.core.errors import UserError
from ldm_ae.training.configuration.config_file import ConfigFile
from ldm_ae.training.configuration.hints import HINTS, hint, is_key
from ldm_ae.training.configuration.keys import config_keys, groups, is_known
from ldm_ae.training.configuration.parsing import config_parser, parse_config
from ldm_ae.training.configuration.spelling import check_spelling
from tests.plugins import write_plugin

REQUIRED = ["--out", "x", "--model", "kl", "--data.train", "y"]


def test_keys_are_those_of_the_parser() -> None:
    own = {"help", "config", "print_config"}
    options = {action.dest for action in config_parser()._actions} - own
    assert set(config_keys()) | groups() == {name for name in options if not name.endswith(".help")}


def test_every_hint_is_an_option() -> None:
    for name, found in HINTS.items():
        assert not is_known(name), f"{name} is a key itself"
        if is_key(found):
            assert is_known(found.split()[0]), f"{name} leads to {found}"


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--lr", "use --optimizer.learning_rate"),
        ("-lr", "use --optimizer.learning_rate"),
        ("--discriminator_optimizer.lr", "use --discriminator_optimizer.learning_rate"),
        ("--resume", "rerun the same command"),
        ("--resume_from_checkpoint", "rerun the same command"),
        ("--objective.kl_weight", "use --objective.regularization_weights.kl"),
        ("--mixed-precision", "use --training.precision"),
        ("--output_dir", "use --out"),
        ("--num_train_epochs", "a run is counted in steps: --training.max_steps"),
        ("--batch_size", "did you mean 'training.batch_size'"),
        ("--trainin.max_steps", "did you mean 'training.max_steps'"),
        ("--training.max_stepz", "did you mean 'training.max_steps'"),
        ("--model.init_args.latent_channel", "did you mean 'latent_channels'"),
        ("--xyzzy", "`ldm-ae train --help` lists the options"),
        ("--phases.2.training.max_stepz", "did you mean 'phases.2.training.max_steps'"),
        ("--phases.2.lr", "use --phases.2.optimizer.learning_rate"),
    ],
)
def test_unknown_option_gets_a_hint(option: str, words: str) -> None:
    for arguments in ([option, "1"], [f"{option}=1"]):
        with pytest.raises(UserError, match=words):
            check_spelling(arguments)


@pytest.mark.parametrize(
    "option",
    ["--training.max_steps", "--objective.regularization_weights.kl", "--optimizer.options.weight_decay", "--optimizer",
     "--model.latent_channels", "--model.init_args.quantizer.init_args.levels", "--training.trackers+", "--model.help",
     "--print_config", "--phases.2.training.max_steps",
     "--phases.1.discriminator.init_args.ndf", "--data.bad_share", "--objective.perceptual.init_args.net",
     "--model.arguments.any_name", "--regularizer.init_args.features.init_args.architecture.any_name"],
)  # fmt: skip
def test_known_options_pass(option: str) -> None:
    assert check_spelling([option, "-1"]) == []


def test_arguments_of_plugins_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no option is named 'discriminator\.init_args\.sharpness'"):
        check_spelling(["--discriminator.init_args.sharpness", "1"])
    monkeypatch.syspath_prepend(write_plugin(tmp_path, "house_plugin", "x = 1"))
    assert check_spelling(["--discriminator.init_args.sharpness", "1"]) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\ntraining: [1, 2\n", r"line 3, column 1: this is not valid YAML: while parsing a flow sequence"),
        ("seed: 1\n  out: x\n", "line 2, column 6: this is not valid YAML: mapping values are not allowed here"),
        ("seed: 1\nout: x\nseed: 2\n", "line 3, column 1: seed is there twice, first in line 1; remove one of them"),
        (
            "model:\n  init_args:\n    act_fn: a\n    act_fn: b\n",
            r"line 4, column 5: model\.init_args\.act_fn is there",
        ),
        ("seed: 1\ntraining:\n  max_stepz: 3\n", r"line 3, column 3: no key is named 'training\.max_stepz'; did you "),
        ("model:\n  class_path: kl\n  init_args: {latent_chanels: 4}\n", "line 3, column 15: .*'latent_channels'"),
        ("optimizer: {lr: 1}\n", r"line 1, column 13: .*; use optimizer\.learning_rate$"),
        ("training: 3\n", r"line 1, column 11: training holds keys \(`training: {...}`\), got 3"),
        (
            "phases:\n- training:\n    max_stepz: 3\n",
            r"line 3, column 5: no key is named 'phases\.1\.training\.max_stepz'; did you mean 'phases\.1",
        ),
        ("phases:\n- {}\n- optimizer: {lr: 1}\n", r"line 3, column 15: .*; use phases\.2\.optimizer\.learning_rate$"),
        ("phases:\n- data: 3\n", r"line 2, column 9: phases\.1\.data holds keys"),
        ("phases:\n- {seed: 1, seed: 2}\n", r"line 2, column 13: phases\.1\.seed is there twice"),
        ("phases: 3\n", "line 1, column 9: phases: expected a list of phases, got a single value"),
        ("phases:\n- {}\n- 3\n", "line 3, column 3: phase 2: expected keys with values, got a single value"),
        ("- seed\n", r"line 1, column 1: expected keys with values \(`seed: 0`\), got a list"),
        ("a: \x00\n", "is not a YAML file of UTF-8 text"),
    ],
)
def test_wrong_file_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as refused:
        check_spelling(["--config", str(tmp_path / "recipe.yaml")])
    assert str(refused.value).startswith(str(tmp_path / "recipe.yaml"))


def test_file_of_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes("out: é".encode("latin-1"))
    with pytest.raises(UserError, match=r"recipe\.yaml is not a YAML file of UTF-8 text"):
        ConfigFile(tmp_path / "recipe.yaml")


def test_file_with_aliases_and_merges_passes(tmp_path: Path) -> None:
    text = "optimizer: &adam {learning_rate: 1.0}\ndiscriminator_optimizer:\n  <<: *adam\n  warmup_steps: 3\n"
    (tmp_path / "recipe.yaml").write_text(text)
    (file,) = check_spelling(["--config", str(tmp_path / "recipe.yaml")])
    assert file.place("discriminator_optimizer.warmup_steps") == f"{tmp_path / 'recipe.yaml'}, line 4"
    assert (
        parse_config(["--config", str(tmp_path / "recipe.yaml"), *REQUIRED]).discriminator_optimizer.warmup_steps == 3
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training:\n  max_steps: many\n", r"line 2: training\.max_steps: expected int, got many$"),
        ("data:\n  crop: middle\n", r"line 2: data\.crop: expected random, center or adm, got middle$"),
        ("data:\n\n  resize: [1]\n", r"line 3: data\.resize: expected int, none or null, got \[1\]$"),
        ("objective:\n  perceptual:\n    class_path: lpips\n    init_args:\n      net: vg\n",
         r"line 5: objective\.perceptual\.init_args\.net: expected vgg, alex or squeeze, got vg$"),
        ("phases: [{}, {training: {max_steps: many}}]\n", r"phases\.2\.training\.max_steps: expected int, got many$"),
        ("phases:\n- seed: 1\n", "line 2: phase 1 sets seed, which all phases of a run share; remove it, or set"),
        ("phases:\n- optimizer: adm\n", "phase 1: no optimizer is named 'adm'; did you mean Adam"),
        ("phases:\n- discriminator: patchgam\n", r"line 2: phases\.1\.discriminator: no discriminator is named"),
        ("objective:\n  perceptual: lpipz\n", r"line 2: objective\.perceptual: no perceptual loss is named 'lpipz'"),
    ],
)  # fmt: skip
def test_wrong_value_is_refused_with_key_and_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        parse_config(["--config", str(tmp_path / "recipe.yaml"), *REQUIRED])


def test_value_of_the_command_line_names_no_file(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("training: {max_steps: 3}\nmodel: kl\n")
    for option, message in (("training.max_steps", "training.max_steps"), ("model.latent_channels", "model.init_args")):
        with pytest.raises(UserError, match=rf"^{message}.*: expected int, got many$"):
            parse_config(["--config", str(tmp_path / "recipe.yaml"), *REQUIRED, f"--{option}", "many"])


def test_arguments_without_a_class_are_refused() -> None:
    with pytest.raises(UserError, match=r"^objective\.perceptual has arguments, but no class; choose it first: --obj"):
        parse_config([*REQUIRED, "--objective.perceptual.net", "vgg"])


def test_missing_options_are_named() -> None:
    with pytest.raises(UserError, match=r"^required, but not given: --model, --data\.train$"):
        parse_config(["--out", "x"])


def test_near_spelling_is_preferred_to_a_name_of_another_program() -> None:
    assert hint("training.batch_sise", config_keys()) == "; did you mean 'training.batch_size'?"
    assert hint("optimiser.learning_rate", config_keys()) == "; did you mean 'optimizer.learning_rate'?"
