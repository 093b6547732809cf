"""`scripts/lease/gpu_lease.py`: its budget of time, failures, results, and the rehearsal of the shipped table."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ldm_ae.models import load_autoencoder
from tests.processes import CLI, run_script

LEASE = Path(__file__).parents[1] / "scripts" / "lease"
START_SECONDS = 3.0
"""Seconds that a part takes beside its training, by the clock of these tests."""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with a clock that only `execute` advances."""
    monkeypatch.syspath_prepend(str(LEASE))
    import gpu_lease

    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(gpu_lease, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    monkeypatch.setattr(gpu_lease, "now", now, raising=False)
    return gpu_lease


def write_table(path: Path, **changes: object) -> Path:
    """Three phases: `first`, `second` and `third`, each from the model of the one before, with shares 1, 2 and 1."""
    phases = [
        {"name": "first", "recipe": "kl_f8", "share": 1},
        {"name": "second", "recipe": "kl_f8", "share": 2, "after": "first", "cooldown": 0.5},
        {"name": "third", "recipe": "kl_f8", "share": 1, "after": "second"},
    ]
    table = {"benchmarks": [], "phases": phases, "start_seconds": 25, "closing_seconds": 20, "compile_from_minutes": 4}
    path.write_text(yaml.safe_dump(table | changes))
    return path


def words(images: Path, out: Path, *more: object) -> list[str]:
    return ["--images", str(images), "--out", str(out), *map(str, more)]


def state(out: Path) -> dict[str, dict[str, object]]:
    parts: dict[str, dict[str, object]] = json.loads((out / "lease.json").read_text())["parts"]
    return parts


@pytest.mark.slow
def test_rehearsal_of_the_shipped_table(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every phase starts from the model of the one before, with the time that the measured starts leave."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (72, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.png")
    table = script.Table.read(script.TABLE)
    short = replace(table, rehearsal=table.rehearsal | {"training.max_steps": 1})
    monkeypatch.setattr(script.Table, "read", lambda _: short)
    out, began = tmp_path / "out", {}

    def execute(command: Sequence[str], log: Path, seconds: float, output: Path | None = None) -> int:
        assert seconds > 0
        began[log.stem] = script.now.seconds
        log.parent.mkdir(parents=True, exist_ok=True)
        if output is not None:  # a benchmark, whose processes take seconds to start
            assert command[2:] == table.benchmarks[0].rehearsal
            output.parent.mkdir(parents=True)
            output.write_text("| ours D=8 |\n")
            log.touch()
            return 0
        status = run_script(CLI, command[3:], log)
        assert status == 0, log.read_text()
        script.now.seconds += START_SECONDS + script.trained(out / "runs" / log.stem)[1]
        return status

    monkeypatch.setattr(script, "execute", execute)
    assert script.main(words(photos, out, "--rehearse", "--minutes", 12)) == 0
    parts = state(out)
    assert {name: part["status"] for name, part in parts.items()} == {
        "nearest_code": "done", "gpu": "skipped", **{phase.name: "done" for phase in table.phases},
    }  # fmt: skip
    assert "| ours D=8 |" in (out / "lease.md").read_text()
    end, shares = 100 + 12 * 60 - script.REHEARSAL["closing_seconds"], [phase.share for phase in table.phases]
    for number, phase in enumerate(table.phases):
        part = phase.share / sum(shares[number:])
        start = START_SECONDS if number else script.REHEARSAL["start_seconds"]
        assert parts[phase.name]["minutes"] == pytest.approx(((end - began[phase.name]) * part - start) / 60)
        config = yaml.safe_load((out / "runs" / phase.name / "config.yaml").read_text())
        cooldown = parts[phase.name]["minutes"] * phase.cooldown  # type: ignore[operator]
        assert config["optimizer"]["cooldown_minutes"] == pytest.approx(cooldown, abs=1e-3)
        assert config["training"]["compile"] is False
        start_of = None if phase.after is None else str(out / "runs" / phase.after / "model")
        assert config["model"]["init_args"].get("pretrained") == start_of
        assert load_autoencoder(out / "models" / phase.name).latent_spec.downsample_factor == 8


@pytest.fixture
def fake_training(script: ModuleType, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Exit statuses of phases by name, 0 for the others, whose run directory then has a model and a figure."""
    statuses: dict[str, int] = {}
    seconds_of: dict[Path, float] = {}

    def execute(command: Sequence[str], log: Path, seconds: float, output: Path | None = None) -> int:
        assert seconds > 0
        assert output is None
        run = Path(command[command.index("--out") + 1])
        log.parent.mkdir(parents=True, exist_ok=True)
        seconds_of[run] = 60 * float(command[command.index("--training.max_minutes") + 1])
        script.now.seconds += seconds_of[run] + START_SECONDS
        status = statuses.get(log.stem, 0)
        log.write_text("a line\nout of memory\n\n" if status else "finished\n")
        if status == 1:
            return status
        shutil.copytree(tiny_model_folder, run / "model")
        (run / "metrics.jsonl").write_text('{"kind": "train", "images_per_second": 31.5}\n')
        return status

    monkeypatch.setattr(script, "execute", execute)
    monkeypatch.setattr(script, "trained", lambda run: (7, seconds_of[run]) if (run / "model").is_dir() else (0, 0.0))
    return statuses


def test_failed_phase_is_reported_and_attempted_again(
    script: ModuleType, fake_training: dict[str, int], image_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out, table = tmp_path / "out", write_table(tmp_path / "table.yaml")
    fake_training["second"] = 1
    arguments = words(image_folder, out, "--rehearse", "--minutes", 4, "--table", table)
    assert script.main(arguments) == 1
    parts = state(out)
    assert [parts[name]["status"] for name in ("first", "second", "third")] == ["done", "failed", "done"]
    assert parts["second"]["reason"] == "exit status 1: out of memory"
    assert parts["third"]["start"] == str(out / "runs" / "first" / "model")  # second has no model
    captured = capsys.readouterr()
    assert "gpu_lease: second: failed, 0 steps, exit status 1: out of memory" in captured.err
    assert "| first | done | 0.8458 | 7 | 31.5 |" in captured.out
    weights = load_autoencoder(out / "models" / "first").net.state_dict()
    expected = load_autoencoder(out / "runs" / "first" / "model").net.state_dict()
    assert all(torch.equal(weights[name], value.half().float()) for name, value in expected.items())

    fake_training.clear()
    assert script.main(arguments) == 0
    assert state(out)["second"]["status"] == "done"
    assert state(out)["second"]["reason"] is None
    assert "second" in capsys.readouterr().err


@pytest.mark.slow
def test_plan_of_two_leases_continues_on_another_machine(
    script: ModuleType, fake_training: dict[str, int], image_folder: Path, tmp_path: Path
) -> None:
    """The first lease ends in the second phase; packed into small files, its results start the second lease."""
    table = write_table(tmp_path / "table.yaml")
    plan = ("--rehearse", "--total-minutes", 8, "--table", table)
    fake_training["second"] = script.STOPPED
    home = ("--home", tmp_path / "home", "--part-megabytes", 0.05)
    first = words(image_folder, tmp_path / "one", *plan, *home, "--minutes", 2.5)
    assert script.main(first) == 0  # The plan has not ended, so a stopped phase is not a failure.
    parts = state(tmp_path / "one")
    assert parts["first"]["minutes"] == pytest.approx((475 / 4 - 8) / 60)
    assert (parts["second"]["status"], parts["third"]["status"]) == ("stopped", "not started")
    packed = sorted((tmp_path / "home").glob("lease.tar.*"))
    assert len(packed) > 2
    assert {path.stat().st_size for path in packed[:-1]} == {50_000}

    fake_training.clear()
    second = words(image_folder, tmp_path / "two", *plan, "--minutes", 5.5, "--resume", tmp_path / "home")
    assert script.main(second) == 0
    parts = state(tmp_path / "two")
    assert [parts[name]["status"] for name in ("first", "second", "third")] == ["done", "done", "done"]
    assert parts["second"]["start"] == str(tmp_path / "two" / "runs" / "first" / "model")


@pytest.mark.slow
def test_results_that_do_not_fit_are_named(
    script: ModuleType, fake_training: dict[str, int], image_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    del fake_training
    table = write_table(tmp_path / "table.yaml")
    home = ("--home", tmp_path / "home", "--home-megabytes", 0.06)
    arguments = words(image_folder, tmp_path / "out", "--rehearse", "--minutes", 8, "--table", table, *home)
    assert script.main(arguments) == 0
    assert sum(path.stat().st_size for path in (tmp_path / "home").glob("lease.tar.*")) <= 60_000
    assert "too large for --home-megabytes 0.06: models/third, models/second" in capsys.readouterr().out


@pytest.mark.parametrize(("more", "message"), [
    ((), "this machine has no accelerator; add --rehearse"),
    (("--rehearse", "--transfer-megabytes", "0.001"), "more than --transfer-megabytes 0.001; give fewer photos"),
    (("--rehearse", "--resume", "nowhere"), "nowhere has no lease.json"),
])  # fmt: skip
def test_refusals(
    script: ModuleType, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: Sequence[str],
    message: str,
) -> None:  # fmt: skip
    assert script.main(words(image_folder, tmp_path / "out", *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("changes", "message"), [
    ({"phases": [{"name": "a", "recipe": "kl_f8", "share": 1, "after": "b"}]}, "`after` the name of a phase above it"),
    ({"phases": [{"name": "a", "recipe": "kl_f8", "share": 0}]}, "share must be above 0"),
    ({"phase": []}, "is not the table of a lease"),
])  # fmt: skip
def test_invalid_tables_are_refused(
    script: ModuleType, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    changes: dict[str, object], message: str,
) -> None:  # fmt: skip
    table = write_table(tmp_path / "table.yaml", **changes)
    assert script.main(words(image_folder, tmp_path / "out", "--plan", "--table", table)) == 2
    assert message in capsys.readouterr().err


SAVES = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path(sys.argv[1]).write_text("saved")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_process_is_stopped_by_a_signal_with_which_it_saves(script: ModuleType, tmp_path: Path) -> None:
    log, table = tmp_path / "log", tmp_path / "table.md"
    command = [sys.executable, "-S", "-c", SAVES, str(tmp_path / "state")]
    assert script.execute(command, log, 2.0) == script.STOPPED
    assert log.read_text() == "ready\n"
    assert (tmp_path / "state").read_text() == "saved"
    assert script.execute([sys.executable, "-S", "-c", "print(5); raise SystemExit(3)"], log, 60.0, output=table) == 3
    assert table.read_text() == "5\n"
