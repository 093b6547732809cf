"""Old names: each keeps working, and one line names the new one."""

import argparse

import pytest

import ldm_ae.models
import ldm_ae.quantizers
from ldm_ae.commands import COMMANDS
from ldm_ae.core.deprecation import RenamedOption, old_export, rename_arguments, rename_keys

RENAMED = {"data.old": "data.new"}


def test_renamed_option_sets_the_new_one_and_warns(caplog: pytest.LogCaptureFixture) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--new-name", type=float, default=1.0)
    parser.add_argument("--old-name", type=float, action=RenamedOption, new="--new-name")
    assert parser.parse_args([]).new_name == 1.0
    assert not caplog.messages
    assert vars(parser.parse_args(["--old-name", "2"])) == {"new_name": 2.0}
    assert caplog.messages == ["--old-name is deprecated and will be removed in the next minor release; use --new-name"]
    assert "--old-name" not in parser.format_help()


def test_bad_share_sets_max_bad_fraction(caplog: pytest.LogCaptureFixture) -> None:
    parser = argparse.ArgumentParser()
    COMMANDS["encode"]().add_arguments(parser)
    parsed = parser.parse_args(["model", "images", "store", "--bad-share", "0.25"])
    assert parsed.max_bad_fraction == 0.25
    assert len(caplog.messages) == 1
    assert parser.parse_args(["model", "images", "store"]).max_bad_fraction == 0.01


def test_keys_are_renamed_and_the_new_name_wins() -> None:
    content = {"data": {"old": 1, "other": 2}}
    assert rename_keys(content, RENAMED) == ["data.old"]
    assert content == {"data": {"other": 2, "new": 1}}
    both = {"data": {"old": 1, "new": 3}}
    rename_keys(both, RENAMED)
    assert both == {"data": {"new": 3}}
    for without in ({}, {"data": None}, {"data": "old"}, {"old": 1}):
        before = dict(without)
        assert rename_keys(without, RENAMED) == []
        assert without == before


def test_arguments_are_renamed(caplog: pytest.LogCaptureFixture) -> None:
    arguments = ["--data.old", "1", "--data.old=2", "data.old", "--other", "--data.older"]
    assert rename_arguments(arguments, RENAMED) == ["--data.new", "1", "--data.new=2", *arguments[3:]]
    assert len(caplog.messages) == 2


def test_old_exports_are_the_new_ones() -> None:
    with pytest.warns(FutureWarning, match=r"ldm_ae\.quantizers\.CaredTable is deprecated; use .*\.ManagedCodebook"):
        assert ldm_ae.quantizers.CaredTable is ldm_ae.quantizers.ManagedCodebook
    with pytest.warns(FutureWarning, match=r"ldm_ae\.models\.redone_batches is deprecated; use .*\.fp32_fallbacks"):
        assert ldm_ae.models.redone_batches is ldm_ae.models.fp32_fallbacks
    assert old_export("package", "other", RENAMED) is None
