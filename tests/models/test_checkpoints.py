"""`RUN@best`, `RUN@last`, `RUN@STEP` and `checkpoints/best`: which model each denotes, and the refusal of others."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ldm_ae
from ldm_ae.cli import main
from ldm_ae.core.errors import UserError
from ldm_ae.io.manifests import MANIFEST, problems, state_of
from ldm_ae.models import KLAutoencoder, is_model_folder, load_autoencoder
from ldm_ae.models.loading.checkpoints import find_named, point_to_best, pointed_to
from ldm_ae.training.checkpoints.checkpoint import Checkpoints, write_checkpoint
from ldm_ae.training.checkpoints.snapshot import Snapshot

SMALL: dict[str, Any] = {
    "block_out_channels": (4, 8), "layers_per_block": 1, "norm_num_groups": 2, "mid_block_add_attention": False,
}  # fmt: skip
VALUES = {1000: 20.0, 1500: 30.0, 2000: 25.0}
"""PSNR by step; each model's weights hold its step."""


def snapshot(step: int, *, old: bool = False) -> Snapshot:
    model = KLAutoencoder(**SMALL)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, float(step))
    best_step = max((other for other in VALUES if other <= step), key=VALUES.__getitem__)
    best: dict[str, Any] = {"step": best_step, "score": VALUES[best_step]}
    best |= {} if old else {"metric": "psnr", "value": VALUES[best_step]}
    state = {
        "step": step, "position": 4 * step, "best": best, "identity": {"seed": 0}, "optimizers": [{}], "scaler": None,
        "rng": [{"torch": torch.zeros(1)}],
    }  # fmt: skip
    return Snapshot(step=step, models={"model": model, "ema": model}, networks={}, state=state)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without the newest model beside its checkpoints."""
    run = tmp_path_factory.mktemp("runs") / "mine"
    checkpoints = Checkpoints(run / "checkpoints", keep=3)
    for step in VALUES:
        checkpoints.write(snapshot(step), best_step=1000 if step == 1000 else 1500)
    (run / "environment.json").write_text("{}")
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "runs" / "mine", symlinks=True))


def step_of(model: Any) -> float:
    return float(next(model.parameters()).detach().flatten()[0])


Opener = Callable[[str], Any]


@pytest.mark.parametrize(
    "opener", [load_autoencoder, ldm_ae.load, lambda name: KLAutoencoder(pretrained=name)],
    ids=["load_autoencoder", "load", "pretrained"],
)  # fmt: skip
def test_names_of_checkpoints_are_models(opener: Opener, run: Path) -> None:
    for name, step in {"best": 1500, "last": 2000, "1000": 1000, "step-00001500": 1500}.items():
        assert step_of(opener(f"{run}@{name}")) == step
    assert step_of(opener(str(run / "checkpoints" / "best"))) == 1500
    assert step_of(opener(str(run / "checkpoints" / "1000"))) == 1000
    assert is_model_folder(f"{run}@best")


def test_pretrained_accepts_a_run_and_a_checkpoint(run: Path) -> None:
    shutil.copytree(run / "checkpoints" / "step-00002000" / "ema", run / "model")
    assert step_of(KLAutoencoder(pretrained=str(run))) == 2000
    assert step_of(KLAutoencoder(pretrained=str(run / "checkpoints" / "step-00001000"))) == 1000


def test_commands_accept_names_of_checkpoints(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", f"{run}@best", str(tmp_path / "out")]) == 0
    assert step_of(load_autoencoder(tmp_path / "out")) == 1500
    capsys.readouterr()
    assert main(["inspect", f"{run}@last", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["state"], found["step"]) == ("checkpoint", "valid", 2000)
    assert found["path"] == str(run / "checkpoints" / "step-00002000")
    assert found["best"] == {"step": 1500, "metric": "psnr", "value": 30.0}


@pytest.mark.parametrize("name", ["{run}@nonsense", "{run}@1700", "{run}/checkpoints/nonsense"])
def test_wrong_name_lists_the_checkpoints(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["export", name.format(run=run), "out"], ["inspect", name.format(run=run)]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert f"{run} has no checkpoint '{name.rpartition('/')[2].rpartition('@')[2]}'" in error
        assert error.endswith("; there are 1000, 1500 (best), 2000\n")
        assert error.count("\n") == 1


def test_wrong_run_names_the_nearest(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parents[1])
    with pytest.raises(UserError, match=r"no such run: runs/mien; did you mean runs/mine@best\?"):
        load_autoencoder("runs/mien@best")
    with pytest.raises(UserError, match="runs is not a run: it has no checkpoints/, of which @last"):
        load_autoencoder("runs@last")
    with pytest.raises(UserError, match="no such run: owner/name"):
        load_autoencoder("owner/name@best")
    (run.parents[1] / "a@best").mkdir()
    assert find_named("a@best") is None, "a path has precedence"


def test_best_of_an_older_run_is_read_from_its_state(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "old"
    for step in VALUES:
        write_checkpoint(run / "checkpoints" / f"step-{step:08d}", snapshot(step, old=True))
    for name in (f"{run}@best", str(run / "checkpoints" / "best")):
        assert find_named(name) == run / "checkpoints" / "step-00001500"


def test_run_without_validation_has_no_best(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    Checkpoints(folder, keep=2).write(
        Snapshot(step=3, models={}, networks={}, state={"best": None}), best_step=None
    )  # fmt: skip
    with pytest.raises(UserError, match=r"has no checkpoint 'best' \(only a validation chooses one\); there are 3$"):
        find_named(f"{tmp_path / 'run'}@best")


def test_best_is_a_relative_link_that_moves_with_the_run(run: Path) -> None:
    best = run / "checkpoints" / "best"
    assert os.readlink(best) == "step-00001500"
    point_to_best(best.parent, "step-00002000")
    assert best.resolve() == (run / "checkpoints" / "step-00002000").resolve()
    assert [path.name for path in best.parent.iterdir() if path.name.startswith(".")] == []
    point_to_best(best.parent, None)
    assert not best.is_symlink()


def test_best_is_a_file_where_there_are_no_links(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = run / "checkpoints" / "best"

    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    point_to_best(best.parent, "step-00002000")
    assert (best.is_symlink(), best.read_text(), pointed_to(best.parent)) == (False, "step-00002000\n", "step-00002000")
    assert step_of(load_autoencoder(f"{run}@best")) == step_of(load_autoencoder(best)) == 2000
    monkeypatch.undo()
    point_to_best(best.parent, "step-00001000")
    assert os.readlink(best) == "step-00001000"


def test_copy_in_place_of_the_link_is_opened_and_replaced(made: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made, tmp_path / "copied", symlinks=False))
    assert (run / "checkpoints" / "best").is_dir()
    assert not (run / "checkpoints" / "best").is_symlink()
    assert step_of(load_autoencoder(f"{run}@best")) == 1500
    checkpoints = Checkpoints(run / "checkpoints", keep=1)
    assert checkpoints.newest() == (run / "checkpoints" / "step-00002000", {}), "it is not a checkpoint of its own"
    checkpoints.write(snapshot(2001), best_step=1500)
    assert os.readlink(run / "checkpoints" / "best") == "step-00001500"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best", "step-00001500", "step-00002001"]


def test_other_folder_named_best_is_refused_before_training(run: Path) -> None:
    best = run / "checkpoints" / "best"
    best.unlink()
    best.mkdir()
    (best / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="best is a folder that is not a checkpoint; rename it"):
        Checkpoints(best.parent, keep=2).newest()
    assert (best / "notes.txt").read_text() == "mine"


def test_best_is_never_pruned(run: Path) -> None:
    folder = run / "checkpoints"
    checkpoints = Checkpoints(folder, keep=1)
    for step in (2001, 2002):
        checkpoints.write(snapshot(step), best_step=1500)
        assert sorted(path.name for path in folder.iterdir()) == ["best", "step-00001500", f"step-{step:08d}"]
    (folder / "best" / "state.json").write_text("{}")
    Checkpoints(folder, keep=5).write(snapshot(2003), best_step=1500)
    assert (folder / "step-00001500").is_dir(), "not even where it is damaged"


def damage(run: Path) -> None:
    """Leave a partly copied checkpoint, one with a changed file and one with a file too many."""
    folder = run / "checkpoints"
    (folder / "step-00001000" / MANIFEST).unlink()
    weights = folder / "step-00001500" / "ema" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (folder / "step-00002000" / "notes.txt").write_text("mine")


def test_inspect_states_whether_each_checkpoint_is_valid(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def inspected() -> Any:
        capsys.readouterr()
        main(["inspect", str(run), "--json"])
        return json.loads(capsys.readouterr().out)

    found = inspected()
    assert found["checkpoints"] == {f"step-{step:08d}": "valid" for step in VALUES}
    assert found["best"] == {"step": 1500, "metric": "psnr", "value": 30.0}
    (run / "checkpoints" / "step-00002000" / "state.json").unlink()
    (run / "checkpoints" / ".step-00003000.1.tmp").mkdir()
    found = inspected()
    assert found["checkpoints"]["step-00002000"] == "incomplete: state.json is missing"
    assert found["unfinished"] == [".step-00003000.1.tmp"]
    damage(run)
    found = inspected()
    assert found["checkpoints"]["step-00001000"] == f"incomplete: {MANIFEST} is missing"
    assert found["checkpoints"]["step-00001500"].startswith("damaged: ema/diffusion_pytorch_model.safetensors has chan")
    assert found["problems"][-1] == "no checkpoint is valid"
    assert main(["inspect", str(run / "checkpoints" / "step-00001500"), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["state"] == "damaged"


def test_invalid_checkpoint_is_refused_by_name(run: Path) -> None:
    damage(run)
    with pytest.raises(
        UserError, match=r"step-00001500 is damaged \(ema/.* has changed since it was written\); there are"
    ):
        load_autoencoder(f"{run}@best")
    with pytest.raises(UserError, match=rf"step-00001000 is incomplete \({MANIFEST} is missing\)"):
        load_autoencoder(f"{run}@1000")
    with pytest.raises(UserError, match=rf"step-00002000 is damaged \(notes\.txt is not in {MANIFEST}\)"):
        load_autoencoder(f"{run}@last")
    (run / "checkpoints" / "step-00002000" / MANIFEST).unlink()
    with pytest.raises(UserError, match="step-00001500 is damaged"):
        load_autoencoder(f"{run}@last")  # a checkpoint without a manifest is still being copied


def test_states_of_checkpoints() -> None:
    assert state_of([]) == "valid"
    assert state_of(["a has changed since it was written", "b is missing"]) == "incomplete"
    assert state_of(["a has 3 bytes instead of 4"]) == "damaged"


def test_link_out_of_the_run_is_not_followed(run: Path) -> None:
    best = run / "checkpoints" / "best"
    best.unlink()
    best.symlink_to("../../secret")
    assert pointed_to(best.parent) is None
    assert find_named(f"{run}@best") == run / "checkpoints" / "step-00001500", "that of the state"
    assert problems(run / "checkpoints" / "step-00001500") == []
