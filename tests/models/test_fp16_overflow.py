"""The trial of models that overflow in fp16, through the commands, in its short form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

TRIALS = Path(__file__).parents[2] / "scripts" / "reliability"


@pytest.mark.slow
def test_every_command_handles_fp16_overflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(TRIALS))
    from fp16_overflow import main

    assert main(["--trials", "1", "--json", str(tmp_path / "result.json")]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    # Four kinds of models through four commands; three of them through export.
    assert (result["row"], result["trials"], result["passed"], result["failures"]) == (11, 19, 19, [])
    assert "19 of 19" in capsys.readouterr().out
