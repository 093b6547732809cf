"""`--help` of every command, 100 columns wide."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from ldm_ae.cli import main
from ldm_ae.commands import COMMANDS
from tests.golden.compare import EXPECTED, Golden
from tests.processes import run_script

WRITTEN_BY = {"python": (3, 11), "jsonargparse": "4.53.0"}
"""The versions that wrote the expected texts. argparse of another Python breaks lines elsewhere; another jsonargparse
describes types differently, so that only the names of the options of `train` are compared."""
TEXTS = [name for name in COMMANDS if name != "train"]


@pytest.fixture(autouse=True)
def _hundred_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")  # argparse of Python 3.14


def help_of(*command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exited:
        main([*command, "--help"])
    assert exited.value.code == 0
    return capsys.readouterr().out


def words_alone() -> bool:
    return sys.version_info[:2] != WRITTEN_BY["python"]


def test_help_matches(golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys=capsys)
    listed = re.findall(r"^    (\w+)(?: |$)", text, re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)
    golden.text("help/ldm-ae.txt", text, words=words_alone())


@pytest.mark.parametrize("command", TEXTS)
def test_help_of_a_command_matches(command: str, golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    golden.text(f"help/{command}.txt", help_of(command, capsys=capsys), words=words_alone())


@pytest.mark.slow
def test_help_of_train_matches(golden: Golden, tmp_path: Path) -> None:
    log = tmp_path / "help.txt"
    assert run_script(Path(__file__).with_name("print_help.py"), ["train", "--help"], log) == 0
    text = log.read_text()
    if version("jsonargparse") == WRITTEN_BY["jsonargparse"]:
        golden.text("help/train.txt", text, words=words_alone())
    else:
        expected = (EXPECTED / "help/train.txt").read_text()
        assert options(text) == options(expected)


def options(text: str) -> list[str]:
    """The names of options, each on a line of its own."""
    return re.findall(r"^  (--[\w.]+)", text, re.MULTILINE)
