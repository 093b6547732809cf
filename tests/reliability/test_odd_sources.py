"""The odd data sets of row 7 in short, and that the trial can fail."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.processes import CLI, run_script

IN_SHORT = [
    "captions with lone surrogates",
    "a snapshot of the hub",
    "a snapshot of the hub, its tables",
    "pipes and broken links",
    "a name shared by two images",
]
"""One of each kind: texts, tables, links and refusals. The other kinds have tests of their own in tests/data."""


@pytest.fixture
def run_trial(samples: Any, trial: Any, tmp_path: Path) -> Callable[[list[str]], Any]:
    import odd_sources

    def run(names: list[str]) -> Any:
        odd_sources.run_trial(trial, samples.run, tmp_path / "sets", names, partial(run_script, CLI))
        return trial

    return run


@pytest.mark.slow
def test_unusual_datasets_are_read_correctly_or_refused(run_trial: Callable[[list[str]], Any]) -> None:
    trial = run_trial(IN_SHORT)
    assert trial.failures == []
    assert trial.passed > 40
    assert trial.figures == {"data sets": len(IN_SHORT)}


@pytest.mark.slow
def test_every_other_unusual_dataset_and_sequence(run_trial: Callable[[list[str]], Any]) -> None:
    import odd_sources

    others = [name for name in (*odd_sources.CASES, *odd_sources.SEQUENCES) if name not in IN_SHORT]
    trial = run_trial([name for name in others if name != "a folder that cannot be read"])
    assert trial.failures == []


@pytest.mark.slow
def test_wrong_store_summary_or_status_counts_as_a_failure(
    run_trial: Callable[[list[str]], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import odd_sources

    case = odd_sources.CASES["captions in metadata.csv"]
    wrong = {
        "labels": case._replace(labels={"0.png": 3}),
        "account": case._replace(account=(*case.account, "skipped: 1 *: 3.png")),
        "status": case._replace(error=("*",)),
    }
    for name, changed in wrong.items():
        monkeypatch.setitem(odd_sources.CASES, name, changed)
    failures = run_trial(list(wrong)).failures
    assert {":".join(failure.split(":")[:2]) for failure in failures} == {
        "labels: last line", "labels: labels", "labels: inspect", "account: account", "status: encode",
        "status: leaves a store",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "pattern", "held"),
    [("a (b) [c]?", "a *[c]?", True), ("a [c]x", "a [c]?", False), ("abc", "ab", False), ("abc", "*b*", True)],
)
def test_patterns_support_only_stars(text: str, pattern: str, held: bool) -> None:
    import odd_sources

    assert odd_sources.matches(text, pattern) is held
