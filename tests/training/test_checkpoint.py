"""Checkpoints: written atomically and during training, verified before they are read."""

from __future__ import annotations

import copy
import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ldm_ae.core.background import BackgroundWriter
from ldm_ae.core.errors import RunError, UserError
from ldm_ae.io.files import sha256, write_json
from ldm_ae.io.manifests import MANIFEST
from ldm_ae.models import KLAutoencoder, load_autoencoder
from ldm_ae.training.checkpoints.checkpoint import (
    Checkpoints,
    checkpoint_name,
    link_model,
    load_networks,
    load_state,
    newest_checkpoint,
    problems,
    write_checkpoint,
)
from ldm_ae.training.checkpoints.snapshot import HostCopy, Snapshot


def snapshot(model: KLAutoencoder, step: int) -> Snapshot:
    return Snapshot(
        step=step, models={"model": model, "ema": model},
        networks={"part": nn.Linear(2, 2).state_dict(), "empty": {}},
        state={"step": step, "tensor": torch.arange(3), "optimizer": {"moments": (torch.zeros(2),), "lr": 0.1}},
    )  # fmt: skip


def write(folder: Path, model: KLAutoencoder, step: int) -> Path:
    path = folder / checkpoint_name(step)
    write_checkpoint(path, snapshot(model, step))
    return path


def test_checkpoint_roundtrip_and_layout(tmp_path: Path, tiny_model: KLAutoencoder) -> None:
    path = write(tmp_path, tiny_model, 7)
    assert path.name == "step-00000007"
    assert problems(path) == []
    names = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}
    weights = "diffusion_pytorch_model.safetensors"
    assert names == {
        MANIFEST, "model/config.json", f"model/{weights}", "ema/config.json", f"ema/{weights}", "part.safetensors",
        "state.json", "state.safetensors",
    }  # fmt: skip
    assert torch.equal(load_state(path)["tensor"], torch.arange(3))
    assert not list(tmp_path.glob(".*"))  # no temporary name is left
    assert {p.stat().st_mode & 0o777 for p in path.rglob("*") if p.is_file()} == {0o666 & ~_umask()}


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


@pytest.mark.parametrize("damage", ["flip", "truncate", "missing", "manifest", "no manifest"])
def test_damaged_checkpoint_is_skipped(tmp_path: Path, tiny_model: KLAutoencoder, damage: str) -> None:
    older, newer = write(tmp_path, tiny_model, 1), write(tmp_path, tiny_model, 2)
    target = newer / ("state.safetensors" if "manifest" not in damage else MANIFEST)
    content = bytearray(target.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        target.write_bytes(content)
    elif damage in ("truncate", "manifest"):
        target.write_bytes(content[: len(content) // 2])
    else:
        target.unlink()
    found, damaged = newest_checkpoint(tmp_path)
    assert found == older
    assert list(damaged) == [newer.name]
    assert target.name in damaged[newer.name][0]


def test_manifest_with_files_outside_the_checkpoint_is_refused(tmp_path: Path, tiny_model: KLAutoencoder) -> None:
    path = write(tmp_path, tiny_model, 1)
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"]["../../evil"] = {"bytes": 1, "sha256": "0"}
    write_json(path / MANIFEST, manifest)
    assert problems(path) == [f"{MANIFEST} names a file outside the checkpoint: ../../evil"]


ENTRY = {"bytes": 1, "sha256": "0"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda manifest: manifest["files"].pop("part.safetensors"), "part.safetensors is not in MANIFEST.json"),
        (lambda manifest: manifest["files"].clear(), "names no files"),
        (lambda manifest: manifest.update(format="ldm_ae.checkpoint/9"), "its format is ldm_ae.checkpoint/9"),
        (lambda manifest: manifest.update(more=1), "is not a manifest"),
        (lambda manifest: manifest["files"].update({"state.json": [1, "0"]}), "its entry of state.json is wrong"),
        (lambda manifest: manifest["files"]["state.json"].update(bytes=1e300), "its entry of state.json is wrong"),
        (lambda manifest: manifest["files"].update({"x" * 5000: ENTRY}), "is missing"),
        (lambda manifest: manifest["files"].update({"a\n\x1b[2Jb": ENTRY}), "is missing"),
    ],
)
def test_checkpoint_with_a_changed_manifest_is_skipped(
    tmp_path: Path, tiny_model: KLAutoencoder, change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    path = write(tmp_path, tiny_model, 1)
    manifest = json.loads((path / MANIFEST).read_text())
    change(manifest)
    write_json(path / MANIFEST, manifest)
    [problem] = problems(path)
    assert reason in problem
    assert problem.isprintable()
    assert len(problem) < 200


def test_other_files_and_folders_are_ignored(tmp_path: Path, tiny_model: KLAutoencoder) -> None:
    path = write(tmp_path, tiny_model, 1)
    (path / ".DS_Store").touch()  # files of file managers are not damage
    (tmp_path / "step-00000002").touch()
    (tmp_path / "step-00000003" / MANIFEST).mkdir(parents=True)
    found, damaged = newest_checkpoint(tmp_path)
    assert found == path
    assert list(damaged) == ["step-00000003", "step-00000002"]


def test_invalid_state_files_are_refused_by_name(tmp_path: Path, tiny_model: KLAutoencoder) -> None:
    path = write(tmp_path, tiny_model, 1)
    for content in ("[" * 10**5, "{", '{"a": {"__tensor__": "b"}}', '{"a": {"__items__": [1]}}', '{"__tensor__": []}'):
        (path / "state.json").write_text(content)
        with pytest.raises(UserError, match=r"state\.json is not a valid saved state"):
            load_state(path)
    (path / "state.safetensors").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match=r"state\.safetensors is not a valid safetensors file"):
        load_state(path)


def test_missing_part_is_refused_by_name(tmp_path: Path, tiny_model: KLAutoencoder) -> None:
    path = write(tmp_path, tiny_model, 1)
    with pytest.raises(UserError, match=r"has no discriminator\.safetensors"):
        load_networks(path, {"discriminator": nn.Linear(2, 2)})
    with pytest.raises(UserError, match=r"part\.safetensors does not fit"):
        load_networks(path, {"part": nn.Linear(3, 2)})


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path, tiny_model: KLAutoencoder) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        write(tmp_path, tiny_model, step)
    (
        tmp_path / checkpoint_name(3) / "state.json"
    ).unlink()  # it does not count, so it keeps no other one from its place
    checkpoints.write(snapshot(tiny_model, 4), best_step=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", *(checkpoint_name(s) for s in (1, 2, 4))]
    checkpoints.write(snapshot(tiny_model, 5), best_step=5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", *(checkpoint_name(s) for s in (4, 5))]


def test_failed_checkpoint_prunes_no_older_one(
    tmp_path: Path, tiny_model: KLAutoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.write(snapshot(tiny_model, 1), best_step=None)
    expected = {p: sha256(p) for p in tmp_path.rglob("*") if p.is_file()}

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ldm_ae.training.checkpoints.checkpoint.write_direct", fail)
    with pytest.raises(RunError, match=r"cannot write .*step-00000002: the disk is full, [\d,]+ bytes are needed"):
        checkpoints.write(snapshot(tiny_model, 2), best_step=None)
    assert {p: sha256(p) for p in tmp_path.rglob("*") if p.is_file()} == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_weights_are_not_saved(tmp_path: Path, tiny_model: KLAutoencoder, value: float) -> None:
    write(tmp_path, tiny_model, 1)
    with torch.no_grad():
        tiny_model.last_layer[0, 0, 0, 0] = value
    with pytest.raises(RunError, match=r"step 2 is not saved.*model: decoder\.conv_out\.weight"):
        write(tmp_path, tiny_model, 2)
    assert [p.name for p in tmp_path.iterdir()] == [checkpoint_name(1)]


def test_host_copy_keeps_the_values_and_reuses_its_memory(tiny_model: KLAutoencoder) -> None:
    tiny_model.to(memory_format=torch.channels_last)
    host = HostCopy()
    original = snapshot(tiny_model, 1)
    copied = host.begin(original)()
    expected = {name: tensor.clone() for name, tensor in original.tensors()}
    places = {name: tensor.data_ptr() for name, tensor in copied.tensors()}
    assert not {tensor.data_ptr() for _, tensor in original.tensors()} & set(places.values())
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in copied.tensors())
    again = host.begin(snapshot(tiny_model, 2))()
    assert {name: tensor.data_ptr() for name, tensor in again.tensors()} == places
    assert not again.models["model"].last_layer.any()


def test_forward_pass_during_the_copy_does_not_change_it(tiny_model: KLAutoencoder) -> None:
    ema = copy.deepcopy(tiny_model)
    original = replace(snapshot(tiny_model, 1), models={"model": tiny_model, "ema": ema})
    expected = {name: tensor.clone() for name, tensor in original.tensors()}
    finish = HostCopy().begin(original)
    with torch.no_grad():
        for tensor in [*tiny_model.parameters(), *original.networks["part"].values()]:
            tensor.zero_()  # as data-dependent initializations and running statistics are
    copied = finish()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in copied.tensors())
    assert len(expected) == len(dict(copied.tensors()))


def test_linked_model_is_the_ema_model(tmp_path: Path, tiny_model: KLAutoencoder) -> None:
    path = write(tmp_path, tiny_model, 1)
    (tmp_path / "model").mkdir()
    link_model(path, tmp_path / "model")
    weights = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "model" / weights).samefile(path / "ema" / weights)
    assert not (tmp_path / "model" / "config.json").samefile(path / "ema" / "config.json")
    assert torch.equal(load_autoencoder(tmp_path / "model").last_layer, tiny_model.last_layer)


def test_background_writer_runs_concurrently_and_reports_failures() -> None:
    writer, go = BackgroundWriter(), threading.Event()
    writer.submit(lambda: None if go.wait(10) else pytest.fail("the job was waited for"))
    writer.check()  # still running: nothing to report
    go.set()
    writer.wait()

    def fail() -> None:
        raise RunError("no room")

    writer.submit(fail)
    with pytest.raises(RunError, match="no room"):
        for _ in range(1000):
            writer.check()
            threading.Event().wait(0.01)
    writer.check()  # reported once
