"""Row 5 in short, and that the trial can fail."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.conftest import command


def test_mutations_are_detected(samples: Any, trial: Any) -> None:
    import mutations

    counts = mutations.try_mutations(trial, samples, 150, seed=1)
    assert trial.failures == []
    assert trial.passed == trial.trials == 150 == counts.total()
    assert set(counts) == set(mutations.KINDS)


@pytest.mark.slow
def test_training_resumes_from_the_previous_checkpoint(
    samples: Any, trial: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mutations

    monkeypatch.setattr(mutations, "ldm_ae", command(tmp_path / "log"))
    mutations.train_on(trial, samples, tmp_path, 1, seed=3)
    assert trial.failures == []


def test_undetected_mutation_counts_as_a_failure(samples: Any, trial: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import mutations

    def fail(_: object) -> list[str]:
        raise RecursionError("too deep")

    monkeypatch.setattr(mutations, "problems", lambda _: [])
    monkeypatch.setattr(mutations, "verify_store", fail)
    mutations.try_mutations(trial, samples, 10, seed=0)
    assert trial.passed == 0
    assert {failure.rpartition(": ")[2] for failure in trial.failures} >= {"too deep"}
    assert any("newest_checkpoint gives" in failure for failure in trial.failures)


def test_mutated_folder_is_restored(tmp_path: Path) -> None:
    from samples import Snapshot

    for name in ("a", "folder/b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    sound = Snapshot(tmp_path)
    (tmp_path / "a").unlink()
    (tmp_path / "folder/b").write_text("B")
    (tmp_path / "c").touch()
    assert sound.changed()
    sound.restore()
    assert not sound.changed()
    assert {p.name: p.read_text() for p in tmp_path.rglob("*") if p.is_file()} == {"a": "a", "b": "folder/b"}


def test_every_json_mutation_is_tried() -> None:
    from mutations import mutate_json

    data = (json.dumps({"a": [1, {"b": "c"}]}, indent=2) + "\n").encode()
    found = [mutate_json(random.Random(seed), data) for seed in range(200)]
    assert all(changed != data for changed in found)
    for sign in (b"[[[[", b"NaN", b'"b": "c", "b": "c"', b"1e+308", b"null", b"\xff"):
        assert any(sign in changed for changed in found), sign
