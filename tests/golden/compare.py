"""Comparison with the files in `expected/`. `pytest tests/golden --update-goldens` writes them anew, on purpose."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXPECTED = Path(__file__).parent / "expected"
UPDATE = "pytest tests/golden --update-goldens"
_SHOWN = 20
"""Differences that a failure lists."""


@dataclass(frozen=True)
class Golden:
    """The expected files."""

    update: bool
    """Write what is found in place of a comparison."""

    def json(self, name: str, found: Any, *, relative: float = 0.0, absolute: float = 0.0) -> None:
        """Compare JSON values with expected/`name`.json, floats within |a - b| <= max(relative * |b|, absolute).

        Everything else is compared exactly: keys, lengths, types, strings, whole numbers.
        """
        path = EXPECTED / f"{name}.json"
        found = json.loads(json.dumps(found))
        if self.update:
            _write(path, _pretty(_rounded(found) if relative else found))
        lines = list(differences(json.loads(path.read_text()), found, relative=relative, absolute=absolute))
        more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        assert not lines, "\n".join([f"{name}.json has changed:", *lines[:_SHOWN], *more, _advice()])

    def text(self, name: str, found: str, *, words: bool = False) -> None:
        """Compare a text with expected/`name`, character by character; with `words` where lines break is ignored."""
        path = EXPECTED / name
        if self.update:
            _write(path, found)
        expected = path.read_text()
        if found == expected or (words and found.split() == expected.split()):
            return
        diff = difflib.unified_diff(expected.splitlines(), found.splitlines(), "expected", "found", lineterm="")
        raise AssertionError("\n".join([f"{name} has changed:", *diff, _advice()]))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _rounded(value: Any) -> Any:
    """Round floats to 7 digits, more than a tolerance asks for."""
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _pretty(value: Any) -> str:
    """Write JSON with a line for each key, and lists of plain values on one line."""
    text = json.dumps(value, indent=1, sort_keys=True)
    text = re.sub(r"\[\n\s+([^\[\]{}]*?)\n\s+\]", lambda found: "[" + re.sub(r"\n +", " ", found[1]) + "]", text)
    assert json.loads(text) == value, "a string of the value looks like a list"
    return text + "\n"


def _advice() -> str:
    return f"If the change is intended, run `{UPDATE}` and commit the difference with its reason."


def differences(
    expected: Any, found: Any, path: str = "", *, relative: float = 0.0, absolute: float = 0.0
) -> Iterator[str]:
    """Yield a line for each place where two JSON values differ."""
    tolerance = {"relative": relative, "absolute": absolute}
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in sorted(expected.keys() | found.keys()):
            if key not in found:
                yield f"{path}/{key}: missing"
            elif key not in expected:
                yield f"{path}/{key}: new"
            else:
                yield from differences(expected[key], found[key], f"{path}/{key}", **tolerance)
    elif isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            yield f"{path}: expected {len(expected)} entries, got {len(found)}"
        for position, (before, now) in enumerate(zip(expected, found, strict=False)):
            yield from differences(before, now, f"{path}/{position}", **tolerance)
    elif type(expected) is not type(found):
        yield f"{path}: expected {expected!r}, got {found!r}"
    elif isinstance(expected, float):
        if not math.isclose(found, expected, rel_tol=relative, abs_tol=absolute) and found != expected:
            yield f"{path}: expected {expected!r}, got {found!r}, off by {abs(found - expected):.2g}"
    elif expected != found:
        yield f"{path}: expected {expected!r}, got {found!r}"
