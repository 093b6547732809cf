"""The contract of the commands: each file of `ldm_ae/commands/` and each plugin's command is found, listed and fast."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ldm_ae.cli import main
from ldm_ae.commands import COMMANDS, Command
from ldm_ae.commands.interface import Parser
from ldm_ae.core.resources import DEFAULT_MODEL
from tests.plugins import write_plugin

PLUGIN = """
    from ldm_ae.commands import Command
    from ldm_ae.core.errors import UserError

    class Count(Command):
        name = "count"
        summary = "Count to a number."

        def add_arguments(self, parser):
            parser.add_argument("number", type=int)
            parser.add_argument("--step", type=int, default=1)

        def run(self, args):
            if args.number < 1:
                raise UserError(f"{args.number} is not positive")
            print(*range(1, args.number + 1, args.step))
            return 3
"""


def ldm_ae(*arguments: str, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, with the packages in `site` installed."""
    path = os.pathsep.join(filter(None, [site and str(site), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", "ldm_ae.cli", *arguments], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


@pytest.mark.parametrize("name", list(COMMANDS))
def test_command_describes_itself_and_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = COMMANDS[name]
    assert command.summary.endswith(".")
    assert command.summary[0].isupper()
    parser = argparse.ArgumentParser(add_help=False)
    command().add_arguments(parser)
    assert all(action.help for action in parser._actions), "each option has a help text"
    if name == "train":  # jsonargparse's; tests/golden has it
        return
    with pytest.raises(SystemExit) as exited:
        main([name, "--help"])
    assert exited.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith(f"usage: ldm-ae {name} ")
    assert command.summary in out.replace("- ", "-")


def test_commands_have_distinct_positions_in_the_list() -> None:
    orders = [command.order for command in COMMANDS.values()]
    assert len(set(orders)) == len(orders)
    assert max(orders) < Command.order, "those of plugins come last"


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["--version"], 0),
        *[([name, "--help"], 0) for name in COMMANDS if name != "train"],
        (["encode", "images", "store", "--sise", "32"], 2),
        (["evaluate", "images", "--perceptual", "vgg"], 2),
        ([], 0),
        (["recipes"], 0),
        (["enocde"], 2),
        (["train"], 2),
        (["train", "--config", "nowhere.yaml"], 2),
        (["train", "--config=nowhere.yaml", "--seed", "1"], 2),
    ],
)
def test_help_and_invalid_options_do_not_import_torch(arguments: list[str], status: int) -> None:
    code = (
        "import sys\nfrom ldm_ae.cli import main\n"
        "try:\n    status = main(sys.argv[1:])\n"
        "except SystemExit as error:\n    status = error.code or 0\n"
        "heavy = {'torch', 'diffusers', 'numpy', 'PIL', 'jsonargparse'} & set(sys.modules)\n"
        "print(status, sorted(heavy), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == f"{status} []"


@pytest.mark.parametrize("arguments", [["--help"], ["encode", "--help"], ["encode", "images", "store", "--sise", "32"]])
def test_help_takes_less_than_a_second(arguments: list[str]) -> None:
    before = os.times()
    ldm_ae(*arguments)
    after = os.times()
    # The processor's time, because a test machine may be busy.
    assert after.children_user + after.children_system - before.children_user - before.children_system < 1.0


def test_unknown_command_names_the_nearest_one_and_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["enocde", "images"]) == 2
    err = capsys.readouterr().err
    assert "'enocde'; did you mean encode?" in err
    assert ", ".join(sorted(COMMANDS)) in err
    assert err.count("\n") == 1


def test_without_arguments_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["--help"])
    assert printed == capsys.readouterr()


def test_option_in_place_of_a_command_names_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["--hepl"])
    assert exited.value.code == 2
    assert "unrecognized arguments: --hepl; did you mean --help?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("--sise", "--size"),
        ("--batchsize=3", "--batch-size"),
        # Other programs' names for ours.
        ("--image-size", "--size"),
        ("--num_workers", "--workers"),
        ("--mixed_precision=fp16", "--precision"),
    ],
)
def test_unknown_option_names_the_one_that_is_meant(word: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["encode", "images", "store", word])
    assert exited.value.code == 2
    assert f"did you mean {near}?" in capsys.readouterr().err


def test_options_stand_between_positional_arguments() -> None:
    parser = Parser()
    COMMANDS["encode"]().add_arguments(parser)
    args = parser.parse_intermixed_args(["--size", "32", "images", "--seed", "3", "store"])
    assert (args.model, args.images, args.store, args.size, args.seed) == (DEFAULT_MODEL, "images", "store", 32, 3)


@pytest.mark.slow
def test_plugin_adds_a_command(tmp_path: Path) -> None:
    site = write_plugin(tmp_path, "counting", PLUGIN)
    listed = ldm_ae("--help", site=site)
    assert listed.returncode == 0
    names = re.findall(r"^    (\w+)(?: |$)", listed.stdout, re.MULTILINE)
    assert names[-2:] == ["import", "count"], "commands of plugins come last"
    assert " count to a number\n" in listed.stdout
    assert ldm_ae("count", "--help", site=site).stdout.startswith("usage: ldm-ae count [-h] [--step STEP] number\n")
    done = ldm_ae("count", "5", "--step", "2", site=site)
    assert (done.returncode, done.stdout) == (3, "1 3 5\n")
    refused = ldm_ae("count", "0", site=site)
    assert (refused.returncode, refused.stderr) == (2, "ldm-ae: error: 0 is not positive\n")
    assert "did you mean count?" in ldm_ae("cuont", site=site).stderr


def test_plugin_cannot_take_the_name_of_a_command(tmp_path: Path) -> None:
    site = write_plugin(tmp_path, "counting", PLUGIN.replace('"count"', '"encode"'))
    done = ldm_ae("--help", site=site)
    assert done.returncode == 2
    assert "two commands are named 'encode'" in done.stderr
