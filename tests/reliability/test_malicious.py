"""Row 6 in short, and that the trial can fail."""

from __future__ import annotations

import pickle
import pickletools
from pathlib import Path
from typing import Any

import pytest
import torch

CHOSEN = ["pickle as state.json", "latents_stats.pt of a store", "the key '../../../precious.txt'"]


def test_malicious_pickles_would_run_code(tmp_path: Path) -> None:
    from attacks import Scene

    scene = Scene(tmp_path)
    pickle.loads(scene.pickled())
    assert scene.canary.exists()
    scene.canary.rmdir()
    (tmp_path / "file.pt").write_bytes(scene.torch_file())
    torch.load(tmp_path / "file.pt", weights_only=False)
    assert scene.canary.exists()
    assert any(code.name == "REDUCE" for code, *_ in pickletools.genops(scene.pickled()))


@pytest.mark.parametrize("name", CHOSEN)
def test_attacks_do_no_harm(
    name: str, samples: Any, trial: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import malicious

    every = malicious.ways
    quick = ("load_state", "LatentDataset", "verify_store", "decode_store", "inspect run", "inspect store", "decode")
    monkeypatch.setattr(malicious, "ways", lambda *args: {way: every(*args)[way] for way in quick})
    monkeypatch.setitem(malicious.ATTACKS, name, malicious.ATTACKS[name]._replace(
        refused_by=tuple(way for way in malicious.ATTACKS[name].refused_by if way in quick)))  # fmt: skip
    malicious.run_trial(trial, samples, tmp_path / "attack", [name])
    assert trial.failures == []
    assert trial.figures["executed"] == trial.figures["written outside"] == 0


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda scene: pickle.loads(scene.pickled()), "EXECUTED"),
        (lambda scene: (scene.folder.parent / "precious.txt").write_text("mine"), "wrote outside: "),
        (lambda scene: (scene.folder / "new").touch(), "wrote outside: "),
        (lambda scene: [][1], "IndexError"),
        (lambda scene: None, "not refused by somehow"),
    ],
)
def test_trial_detects_harm(
    harm: Any, words: str, samples: Any, trial: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import malicious

    attack = malicious.ATTACKS["a position below 0"]._replace(refused_by=("somehow",))
    monkeypatch.setitem(malicious.ATTACKS, "harm", attack)
    monkeypatch.setattr(malicious, "ways", lambda scene, _: {"somehow": lambda: harm(scene)})
    malicious.run_trial(trial, samples, tmp_path / "attack", ["harm"])
    assert trial.passed == 0
    assert words in trial.failures[0]


def test_trial_checks_exit_status_and_message_lines(samples: Any) -> None:
    import malicious

    from ldm_ae.core.errors import UserError

    def fail() -> None:
        raise UserError("a\nb\nc")

    assert "several lines" in malicious.open_it("load_state", fail).wrong
    assert "exit status 1" in malicious.open_it("train", lambda: 1).wrong
    assert malicious.open_it("train", lambda: 2).wrong.startswith("prints 0 error lines")
    assert malicious.open_it("train", lambda: 0) == malicious.Answer("train", False, None)


def test_attacks_are_numerous_and_distinct(samples: Any, tmp_path: Path) -> None:
    import shutil

    from attacks import ATTACKS, Scene
    from samples import Snapshot

    assert len(ATTACKS) >= 15
    seen = set()
    for number, attack in enumerate(ATTACKS.values()):
        scene = Scene(tmp_path / str(number) / "scene")
        shutil.copytree(samples.run, scene.run)
        shutil.copytree(samples.store, scene.store)
        before = Snapshot(scene.folder)
        attack.build(scene)
        assert before.changed()
        assert not scene.canary.exists()
        now = Snapshot(scene.folder).files
        seen.add(hash(tuple(sorted((k, v.replace(str(tmp_path / str(number)).encode(), b"")) for k, v in now.items()))))
    assert len(seen) == len(ATTACKS)
