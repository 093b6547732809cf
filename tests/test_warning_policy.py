"""Warnings in the project's code are errors; warnings of libraries are reported and fail no test."""

from __future__ import annotations

import traceback
import warnings
from pathlib import Path

import pytest

import ldm_ae.models.adapters.kl
from tests.warning_policy import ROOT, Report


def warn(module: str, category: type[Warning], message: str = "words") -> list[warnings.WarningMessage]:
    """Return the warnings of a call, attributed to a module, that are not errors."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.warn_explicit(message, category, f"{module}.py", 1, module, registry={})
    return caught


@pytest.mark.parametrize("category", [UserWarning, RuntimeWarning, ResourceWarning, SyntaxWarning])
@pytest.mark.parametrize(
    "module", ["ldm_ae", "ldm_ae.models.adapters.kl", "tests.test_api", "train", "measuring", "kill_training"]
)
def test_warning_in_the_projects_code_is_an_error(module: str, category: type[Warning]) -> None:
    with pytest.raises(category, match="words"):
        warn(module, category)


@pytest.mark.parametrize("module", ["torch.nn.modules.module", "ldm_ae_plugin", "trainer_of_others", "transformers"])
def test_warning_in_a_librarys_code_is_not_an_error(module: str) -> None:
    for category in (UserWarning, RuntimeWarning, DeprecationWarning):
        assert len(warn(module, category)) == 1


@pytest.mark.parametrize("category", [DeprecationWarning, PendingDeprecationWarning, FutureWarning])
def test_library_deprecation_is_not_an_error(category: type[Warning]) -> None:
    assert len(warn("ldm_ae.models.adapters.kl", category)) == 1
    assert len(warn("ldm_ae.models.adapters.kl", UserWarning, "TypedStorage is\ndeprecated")) == 1
    assert len(warn("tests.test_api", UserWarning, "`names` will be removed in version 6")) == 1


@pytest.mark.parametrize(
    "category", [pytest.PytestUnraisableExceptionWarning, pytest.PytestUnhandledThreadExceptionWarning]
)
def test_uncaught_exception_through_the_projects_code_is_an_error(category: type[Warning]) -> None:
    for file in (ldm_ae.models.adapters.kl.__file__, __file__, f"{ROOT}/scripts/train.py"):
        place = traceback.FrameSummary(file, 7, "run", line="1 / 0")
        with pytest.raises(category):
            warn("_pytest.threadexception", category, "Exception in thread\n" + "".join(traceback.format_list([place])))
    theirs = traceback.FrameSummary(
        "/home/me/ldm_ae/.venv/lib/python3.11/site-packages/ray/actor.py", 7, "run", line=""
    )
    assert len(warn("_pytest.threadexception", category, "".join(traceback.format_list([theirs])))) == 1


def test_report_counts_warnings_and_lists_the_projects_calls_first(tmp_path: Path) -> None:
    report = Report(tmp_path / "report")
    theirs = warnings.WarningMessage("`a` is\ngone", FutureWarning, "/x/site-packages/torch/nn/module.py", 9)
    ours = warnings.WarningMessage("old name", DeprecationWarning, str(ROOT / "ldm_ae" / "cli.py"), 3)
    for message in (theirs, ours, theirs):
        report.pytest_warning_recorded(message)
    report.pytest_sessionfinish()
    assert (tmp_path / "report").read_text().splitlines() == [
        "2 warnings of libraries",
        "    1 x ldm_ae/cli.py:3: DeprecationWarning: old name",
        "    2 x torch/nn/module.py:9: FutureWarning: `a` is gone",
    ]
