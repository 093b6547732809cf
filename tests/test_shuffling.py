"""The order of the tests, and the option `--shuffle`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.shuffling import LONG, long_first, shuffled


def names(items: list[Any]) -> list[str]:
    return [item.nodeid for item in items]


def test_shuffle_keeps_files_together_and_repeats_the_order_of_a_seed() -> None:
    items: list[Any] = [SimpleNamespace(nodeid=f"tests/{file}.py::test_{i}") for file in "abcdefgh" for i in range(8)]
    orders = [names(shuffled(items, seed)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    for order in orders:
        assert sorted(order) == names(items)
        files = [name.split("::")[0] for name in order]
        assert [file for file, before in zip(files, [None, *files], strict=False) if file != before] == list(
            dict.fromkeys(files)
        )
        first = [name for name in order if name.startswith("tests/a.py")]
        assert first != sorted(first)
        assert files != sorted(files)


def test_long_files_are_first_and_other_tests_keep_their_order() -> None:
    given = [
        "tests/a.py::test_2",
        f"{LONG[1]}::test_1",
        "tests/a.py::test_1",
        f"{LONG[0]}::test_3",
        f"{LONG[0]}::test_0",
    ]
    items: list[Any] = [SimpleNamespace(nodeid=name) for name in given]
    assert names(long_first(items)) == [given[3], given[4], given[1], given[0], given[2]]
    assert all((Path(__file__).parents[1] / name).is_file() for name in LONG)
