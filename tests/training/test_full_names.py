"""Short and old names: what the configuration holds afterwards, from files and from the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ldm_ae.core.errors import UserError
from ldm_ae.core.registry import Registry, short_names
from ldm_ae.training.configuration.full_names import REGISTRIES, full_names
from ldm_ae.training.configuration.parsing import config_parser, parse_config

pytestmark = pytest.mark.usefixtures("one_parser")

REQUIRED = ["--out", "x", "--data.train", "y"]
SHORT = {
    "model": ("kl", "ldm_ae.models.KLAutoencoder"),
    "objective.perceptual": ("lpips", "ldm_ae.losses.LPIPS"),
    "objective.reconstruction": ("l2", "ldm_ae.losses.L2"),
    "objective.adversarial": ("non_saturating", "ldm_ae.losses.NonSaturatingLoss"),
    "discriminator": ("patchgan", "ldm_ae.discriminators.PatchDiscriminator"),
    "regularizer": ("noise", "ldm_ae.regularizers.GaussianNoise"),
    "optimizer": ("adamw", "torch.optim.AdamW"),
    "discriminator_optimizer": ("SGD", "torch.optim.SGD"),
}


def full(config: Any) -> dict[str, str]:
    return {key: config[f"{key}.class_path"] for key in SHORT}


@pytest.mark.slow
def test_short_names_become_class_paths(tmp_path: Path) -> None:
    expected = {key: path for key, (_, path) in SHORT.items()}
    options = [word for key, (short, _) in SHORT.items() for word in (f"--{key}", short)]
    assert full(parse_config([*REQUIRED, *options])) == expected
    assert full(parse_config([*REQUIRED, *(f"--{key}={short}" for key, (short, _) in SHORT.items())])) == expected
    options = [word for key, (short, _) in SHORT.items() for word in (f"--{key}.class_path", short)]
    assert full(parse_config([*REQUIRED, *options])) == expected
    nested: dict[str, Any] = {"objective": {}}
    for key, (short, _) in SHORT.items():
        group, _, leaf = key.rpartition(".")
        (nested[group] if group else nested)[leaf] = short if leaf != "model" else {"class_path": short}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(nested))
    config = parse_config(["--config", str(tmp_path / "recipe.yaml"), *REQUIRED])
    assert full(config) == expected
    dumped = yaml.safe_load(config_parser().dump(config))
    assert dumped["optimizer"]["class_path"] == "torch.optim.AdamW"
    assert dumped["objective"]["perceptual"]["class_path"] == "ldm_ae.losses.LPIPS"


def test_short_names_inside_values_become_class_paths() -> None:
    quantizer = "--model.init_args.quantizer={class_path: fsq, init_args: {levels: [4, 4]}}"
    objective = ["--objective", "{perceptual: st-lpips, perceptual_weight: 2.0}"]
    config = parse_config([*REQUIRED, "--model", "vq", quantizer, *objective])
    assert config.model.init_args.quantizer.class_path == "ldm_ae.quantizers.FSQ"
    assert config.objective.perceptual.class_path == "ldm_ae.losses.ShiftTolerantLPIPS"
    assert config.objective.perceptual_weight == 2.0
    features = "{class_path: vf, init_args: {features: {class_path: resnet-50, init_args: {weights: null}}}}"
    config = parse_config([*REQUIRED, "--model", "kl", "--regularizer", features])
    assert config.regularizer.class_path == "ldm_ae.regularizers.Alignment"
    assert config.regularizer.init_args.features.class_path == "ldm_ae.features.ResNet50"


@pytest.mark.slow
def test_list_of_regularizers_becomes_a_chain(tmp_path: Path) -> None:
    items = "[eq-vae, {class_path: noise, init_args: {gamma: 2.0}}]"
    (tmp_path / "recipe.yaml").write_text(f"model: kl\nregularizer: {items}\n")
    for arguments in (
        ["--config", str(tmp_path / "recipe.yaml")], ["--model", "kl", "--regularizer", items],
        ["--model", "kl", f"--regularizer={items}"],
    ):  # fmt: skip
        found = parse_config([*arguments, *REQUIRED])
        assert found.regularizer.class_path == "ldm_ae.regularizers.Chain"
        first, second = found.regularizer.init_args.regularizers
        assert first.class_path == "ldm_ae.regularizers.EQVAE"
        assert second.class_path == "ldm_ae.regularizers.GaussianNoise"
        assert second.init_args.gamma == 2.0
        dumped = tmp_path / "dumped.yaml"
        dumped.write_text(config_parser().dump(found))
        again = config_parser().dump(parse_config(["--config", str(dumped)]))
        assert yaml.safe_load(again)["regularizer"] == yaml.safe_load(dumped.read_text())["regularizer"]


def test_wrong_elements_of_a_list_of_regularizers_are_refused() -> None:
    for items, message in (
        ("[eq-vea]", "no regularizer is named 'eq-vea'; did you mean EQVAE?"),
        ("[{class_path: os.system}]", "no regularizer is named 'os.system'"),
        ("[3]", "regularizer of --regularizer: expected a list of names and mappings with class_path, got 3"),
        (
            "[{gamma: 1}]",
            "regularizer of --regularizer: expected a list of names and mappings with class_path, got {",
        ),
    ):
        with pytest.raises(UserError) as refused:
            full_names(["--regularizer", items])
        assert str(refused.value).startswith(message)


def test_later_option_overrides_the_optimizer_of_a_file(tmp_path: Path) -> None:
    for text in ("optimizer: adamw\n", "optimizer: {class_path: torch.optim.AdamW}\n"):
        (tmp_path / "recipe.yaml").write_text(f"model: kl\n{text}")
        config = ["--config", str(tmp_path / "recipe.yaml"), *REQUIRED]
        assert parse_config(config).optimizer.class_path == "torch.optim.AdamW"
        assert parse_config([*config, "--optimizer", "adam"]).optimizer.class_path == "torch.optim.Adam"


def test_unknown_optimizer_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="no optimizer is named 'adamww'; did you mean AdamW"):
        full_names(["--optimizer", "adamww"])


@pytest.mark.parametrize("text", ["training: {precision: no}", "training: {precision: 'no'}"])
def test_precision_no_is_deprecated(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "recipe.yaml").write_text(f"model: kl\n{text}\n")
    config = parse_config(["--config", str(tmp_path / "recipe.yaml"), *REQUIRED])
    assert config.training.precision == "fp32"
    assert "training.precision: no of" in caplog.text
    assert "use fp32" in caplog.text
    assert parse_config([*REQUIRED, "--model", "kl", "--training.precision", "no"]).training.precision == "fp32"


def test_file_without_short_names_is_passed_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("model: {class_path: ldm_ae.models.KLAutoencoder}\nseed: 3\n")
    arguments = ["--config", str(tmp_path / "recipe.yaml"), "--print_config", "--seed", "-1"]
    assert full_names(arguments) == arguments


def test_wrong_values_of_groups_are_refused() -> None:
    for option, value, message in (
        ("training", "nowhere.yaml", "--training: no such configuration file: nowhere.yaml"),
        ("optimizer", "nowhere.yaml", "--optimizer: no such configuration file: nowhere.yaml"),
        ("objective", "{perceptual: lpips", "--objective: {perceptual: lpips is not valid YAML: "),
        ("optimizer", "{class_path: adamw", "--optimizer: {class_path: adamw is not valid YAML: "),
    ):
        with pytest.raises(UserError) as refused:
            full_names([f"--{option}", value])
        assert str(refused.value).startswith(message)


@pytest.mark.parametrize("registry", REGISTRIES.values(), ids=list(REGISTRIES))
def test_every_short_name_leads_to_its_class(registry: Registry[Any]) -> None:
    for cls in registry.classes():
        for name in (cls.__name__, cls.__name__.lower(), *short_names(cls)):
            assert registry.by_short_name(name) is cls


def test_documented_short_names_are_those_of_the_classes() -> None:
    page = (Path(__file__).parents[2] / "docs" / "TRAINING.md").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^\| `([\w.]+)` \| (.*) \|$", page.partition("| short names |")[2], re.MULTILINE))
    keys = {id(registry): key for key, registry in reversed(REGISTRIES.items())}  # one row for each registry
    for key, registry in ((key, REGISTRIES[key]) for key in keys.values()):
        (row,) = (names for name, names in documented.items() if name.rpartition(".")[2] == key)
        found = [registry.by_short_name(name) for name in re.findall(r"`(.*?)`", row)]
        assert set(found) == set(registry.classes()), key
