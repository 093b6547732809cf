"""The order of the tests: files that take long first, or with `--shuffle SEED` a random order, which shows a test that
needs another one or disturbs it."""

from __future__ import annotations

import random

import pytest

LONG = (
    "tests/reliability/test_trials.py", "tests/test_benchmarks.py", "tests/latents/test_ray_engine.py",
    "tests/commands/test_quickstart.py", "tests/test_notebook.py", "tests/reliability/test_odd_sources.py",
    "tests/reliability/test_odd_images.py", "tests/test_contributing.py", "tests/test_docs.py",
)  # fmt: skip
"""Files of which some tests take many seconds. The workers of pytest-xdist take tests from the end of each other's
lists, so that short tests at the end let them end together."""


def add_options(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption(
        "--shuffle", type=int, metavar="SEED", help="run the files in a random order, and the tests of each file too"
    )


@pytest.hookimpl(trylast=True)  # pytest itself orders tests by their fixtures
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    seed = config.getoption("shuffle")
    items[:] = long_first(items) if seed is None else shuffled(items, seed)


def long_first(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return the tests with those of `LONG` first, in its order; the others keep theirs."""
    order = {name: number for number, name in enumerate(LONG)}
    return sorted(items, key=lambda item: order.get(item.nodeid.split("::")[0], len(order)))


def shuffled(items: list[pytest.Item], seed: int) -> list[pytest.Item]:
    """Return the tests file by file. The order depends only on the seed and the given order, so that the workers of
    pytest-xdist agree."""
    files: dict[str, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.nodeid.split("::")[0], []).append(item)
    draws = random.Random(seed)
    names = list(files)
    draws.shuffle(names)
    for name in names:
        draws.shuffle(files[name])
    return [item for name in names for item in files[name]]
