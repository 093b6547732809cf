"""`ldm-ae train --help`: every key is described, and nothing is shown that a user cannot give."""

from __future__ import annotations

import re

import pytest

from ldm_ae.core.errors import UserError
from ldm_ae.training.configuration.help_format import short_name
from ldm_ae.training.configuration.keys import CLASS_KEYS, config_keys, groups
from ldm_ae.training.configuration.parsing import config_parser, parse_config

pytestmark = pytest.mark.slow  # commands and trainings, half a second and longer together with their set-up


@pytest.fixture(scope="module")
def text() -> str:
    return config_parser(described=True, prog="ldm-ae train").format_help()


def entries(text: str) -> dict[str, str]:
    """The description of each option, by its name."""
    found = re.findall(r"^  --(\S+).*\n((?: {8}.*\n)+)", text, re.MULTILINE)
    return {name: " ".join(words.split()) for name, words in found}


def test_every_key_is_described_once(text: str) -> None:
    described = entries(text)
    assert set(described) == {*config_keys(), "config", "print_config"}
    for key, words in described.items():
        assert len(re.sub(r"\(.*?\)$", "", words).split()) >= 2, f"{key} is not described: {words}"


def test_keys_stand_in_their_groups(text: str) -> None:
    sections = re.split(r"^(\w+):$", text, flags=re.MULTILINE)[1:]
    parts = dict(zip(sections[::2], sections[1::2], strict=True))
    assert list(parts) == ["options", "run", "data", "objective", "optimizer", "discriminator_optimizer", "training"]
    for group in groups():
        assert {key for key in config_keys() if key.startswith(f"{group}.")} == set(entries(parts[group]))


def test_classes_have_short_names_and_internal_ones_are_not_listed(text: str) -> None:
    described = entries(text)
    assert all(f" {name}," in described["model"] for name in ("kl", "flux2", "video"))
    assert " vq." in described["model"]
    assert "lpips, logits, msssim, ssim, stlpips, sum." in described["objective.perceptual"]
    assert "default: hinge" in described["objective.adversarial"]
    for internal in ("OverflowGuard", "FeatureDistance", "ldm_ae.", "<class", "typing", "None"):
        assert internal not in text
    for key in CLASS_KEYS:
        for name, words in described.items():
            if name.rpartition(".")[2] == key:
                assert f"--{name}.help NAME lists the arguments" in words


def test_help_of_a_class_describes_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        parse_config(["--model.help", "vq"])
    assert exited.value.code == 0
    described = entries(capsys.readouterr().out)
    assert "hannels of each resolution level" in described["model.block_out_channels"]
    assert "--model.help NAME --model.quantizer.help NAME lists the arguments" in described["model.quantizer"]
    with pytest.raises(SystemExit):
        parse_config(["--model.help", "vq", "--model.quantizer.help", "fsq"])
    assert "model.quantizer.levels" in entries(capsys.readouterr().out)


def test_help_of_a_group_shows_its_keys_alone(capsys: pytest.CaptureFixture[str]) -> None:
    for group in groups():
        with pytest.raises(SystemExit) as exited:
            parse_config([f"--{group}.help"])
        assert exited.value.code == 0
        assert set(entries(capsys.readouterr().out)) == {key for key in config_keys() if key.startswith(f"{group}.")}
    with pytest.raises(UserError, match=r"no option is named 'trainin\.help'; did you mean 'training'"):
        parse_config(["--trainin.help"])


def test_help_of_an_unknown_class_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"^no network class is named 'klx'; .*there are .*KLAutoencoder, .*VQAutoencoder"
    ):
        parse_config(["--model.help", "klx"])
    with pytest.raises(UserError, match=r"^--model\.help takes the name of a class: .*KLAutoencoder, .*VQAutoencoder$"):
        parse_config(["--model.help"])


def test_short_name_is_the_shortest() -> None:
    class LongName:
        short_names = ("long-name", "ln")

    assert short_name(LongName) == "ln"
    assert short_name(str) == "str"
