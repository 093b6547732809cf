"""`--shuffle SEED` runs the tests in a random order, which shows a test that needs another one or disturbs it."""

from __future__ import annotations

import random

import pytest


def add_options(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption(
        "--shuffle", type=int, metavar="SEED", help="run the files in a random order, and the tests of each file too"
    )


@pytest.hookimpl(trylast=True)  # pytest itself orders tests by their fixtures
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    seed = config.getoption("shuffle")
    if seed is not None:
        items[:] = shuffled(items, seed)


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
