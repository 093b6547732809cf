"""Which warnings fail a test, and a report of the others.

A warning is an error where our own code causes it: it is attributed to a module of the package, a script or a test, or
an exception in a thread or a destructor passed through one of their files. Everything else, and what a library
deprecates wherever it attributes that, depends on the versions that happen to be installed. It never fails a test;
`--warnings-report FILE` lists it, with the calls that stand in our own files first.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLACES = ("ldm_ae", "scripts", "tests")
# Tests import a script under its bare name.
MODULES = "|".join([*PLACES, *sorted(path.stem for path in (ROOT / "scripts").rglob("*.py"))])
# A path below one of the folders. A virtual environment within the checkout has a dot in its paths' folders.
FILES = rf"({'|'.join(PLACES)})/\w+(/\w+)*\.py"

# The last one that fits a warning counts.
FILTERS = (
    rf"error:::({MODULES})(\.|\Z)",
    "default::DeprecationWarning",
    "default::PendingDeprecationWarning",
    "default::FutureWarning",
    # Some libraries deprecate by a UserWarning.
    r"default:(?s).*(\bdeprecat|will be removed)",
    # Python 3.12 warns of every fork in a process with threads; torch's data loader forks its workers.
    "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning",
    rf"error:(?s).*{FILES}:pytest.PytestUnhandledThreadExceptionWarning",
    rf"error:(?s).*{FILES}:pytest.PytestUnraisableExceptionWarning",
)


def add_options(parser: pytest.Parser) -> None:
    """Add the option of the report."""
    parser.addoption("--warnings-report", metavar="FILE", help="write the warnings that fail no test to this file")


def pytest_configure(config: pytest.Config) -> None:
    for line in FILTERS:
        config.addinivalue_line("filterwarnings", line)
    if config.getoption("warnings_report") and not hasattr(config, "workerinput"):  # pytest-xdist's main process
        config.pluginmanager.register(Report(Path(config.getoption("warnings_report"))))


class Report:
    """Counts warnings and writes them when the session ends."""

    def __init__(self, path: Path):
        self._path = path
        self._counts: Counter[tuple[bool, str]] = Counter()

    def pytest_warning_recorded(self, warning_message: warnings.WarningMessage) -> None:
        self._counts[describe(warning_message)] += 1

    def pytest_sessionfinish(self) -> None:
        lines = [f"{count:5d} x {line}" for (_, line), count in sorted(self._counts.items(), key=_order)]
        self._path.write_text("".join(f"{line}\n" for line in [f"{len(lines)} warnings of libraries", *lines]))


def _order(item: tuple[tuple[bool, str], int]) -> tuple[bool, int, str]:
    (elsewhere, line), count = item
    return elsewhere, -count, line


def describe(message: warnings.WarningMessage) -> tuple[bool, str]:
    """Return whether a warning is attributed to another's file, and one line about it."""
    path = Path(message.filename)
    elsewhere = not any(path.is_relative_to(ROOT / place) for place in PLACES)
    where = re.sub(r".*[/\\]site-packages[/\\]", "", str(path)) if elsewhere else path.relative_to(ROOT).as_posix()
    words = " ".join(str(message.message).split())
    return elsewhere, f"{where}:{message.lineno}: {message.category.__name__}: {words[:300]}"
