"""A short run of the fuzzer, its earlier findings, and its own failures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ldm_ae.core.errors import UserError, printable, reason
from ldm_ae.training.run import parse_config

COUNTS = {"manifest": 200, "state": 200, "store": 200, "header": 300, "model": 40, "recipe": 25}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "recipe" else name for name in COUNTS]
)
def test_readers_refuse_fuzzed_input(name: str, trial: Any, tmp_path: Path) -> None:
    import fuzz

    counts = fuzz.fuzz(trial, name, tmp_path / name, COUNTS[name], seed=0)
    assert trial.failures == []
    assert sum(counts.values()) == COUNTS[name]
    assert counts["refused"] > 0 or name == "manifest"  # whose reader gives a list


def test_every_reader_is_tried() -> None:
    import fuzz

    assert COUNTS.keys() == fuzz.READERS.keys()


def test_other_exceptions_and_multiline_messages_count_as_failures(
    trial: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fuzz

    for name, error in (("key", KeyError("a")), ("lines", UserError("a\nb\nc")), ("escape", UserError("\x1b[2J"))):

        def fail(_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setitem(fuzz.READERS, name, (lambda _, fail=fail: fail, 1.0))
        fuzz.fuzz(trial, name, tmp_path / name, 1, seed=0)
    assert trial.passed == 0
    assert trial.trials == 3
    assert "key 0 of seed 0: KeyError" in trial.failures[0]


@pytest.mark.parametrize(
    ("line", "content"),
    [
        pytest.param("out: " + "[" * 2000 + "]" * 2000, "", marks=pytest.mark.slow),
        ("out: \t@", ""),
        ('"\\x1b[2J": 1', "\\x1b[2J"),
        ("out: !!python/object/apply:os.mkdir ['canary']", "os.mkdir"),
    ],
    ids=["deep", "token", "escape", "tag"],
)
def test_invalid_recipes_are_refused(line: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(line)
    with pytest.raises(UserError) as caught:
        parse_config(["--config", str(tmp_path / "recipe.yaml")])
    assert content in str(caught.value)  # around it are the words of the parser
    assert len(str(caught.value)) > 20
    assert str(caught.value).isprintable()
    assert not (tmp_path / "canary").exists()


def test_messages_are_single_printable_lines() -> None:
    assert printable("a\n\x1b[2J\u00e9") == "a\\n\\x1b[2J\u00e9"
    assert len(printable("\n" * 1000, 50)) == 50
    assert reason(KeyError()) == "KeyError"
    assert reason(ValueError("\n first\nsecond")) == "first"
