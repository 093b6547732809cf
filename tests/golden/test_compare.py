"""The comparison itself: it names differences, and a tolerance applies only to floats."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden import compare
from tests.golden.compare import Golden, differences


def test_differences_are_reported_by_path() -> None:
    expected = {"a": [1, 2.0], "b": "x", "c": None, "d": {"e": 1}}
    found = {"a": [1, 2.1, 3], "b": "y", "c": 0, "d": {"f": 1}}
    assert list(differences(expected, found)) == [
        "/a: expected 2 entries, got 3",
        "/a/1: expected 2.0, got 2.1, off by 0.1",
        "/b: expected 'x', got 'y'",
        "/c: expected None, got 0",
        "/d/e: missing",
        "/d/f: new",
    ]


def test_tolerance_applies_only_to_floats() -> None:
    assert list(differences({"a": 100.0}, {"a": 100.009}, relative=1e-4)) == []
    assert len(list(differences({"a": 100.0}, {"a": 100.011}, relative=1e-4))) == 1
    assert list(differences({"a": 0.0}, {"a": 9e-6}, absolute=1e-5)) == []
    assert len(list(differences({"a": 100000}, {"a": 100001}, relative=1e-4))) == 1
    assert len(list(differences({"a": 1.0}, {"a": float("nan")}, relative=1e-4))) == 1


def test_changed_golden_fails_until_updated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "EXPECTED", tmp_path)
    Golden(update=True).json("folder/name", {"a": [1.5, 2.5], "b": "[-1, 1]"})
    assert (tmp_path / "folder/name.json").read_text() == '{\n "a": [1.5, 2.5],\n "b": "[-1, 1]"\n}\n'
    Golden(update=False).json("folder/name", {"a": [1.5, 2.5], "b": "[-1, 1]"})
    with pytest.raises(AssertionError, match=r"name\.json has changed:\n/a/1: expected 2\.5, got 3\.5.*\nIf the"):
        Golden(update=False).json("folder/name", {"a": [1.5, 3.5], "b": "[-1, 1]"})
    Golden(update=True).text("help.txt", "some words\n  and more\n")
    Golden(update=False).text("help.txt", "some\nwords and more\n", words=True)
    with pytest.raises(AssertionError, match="-  and more\n"):
        Golden(update=False).text("help.txt", "some words\n")
