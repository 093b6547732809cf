"""Encoding on Ray: the same bytes as without it, also when a process dies."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import socket
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm_ae.cli import main
from ldm_ae.core.errors import RunError, UserError
from ldm_ae.data import RawImage, Wrapped, open_source
from ldm_ae.latents import Processes
from ldm_ae.latents.encoding.jobs import Job
from ldm_ae.latents.store import writer
from ldm_ae.latents.store.records import recorded
from ldm_ae.models import KLAutoencoder
from tests.latents.helpers import contents, encode
from tests.latents.test_indices import discrete
from tests.latents.test_resume import SHARDS, encode_until

try:
    from ldm_ae.latents.encoding.engines import ray as ray_engine
except UserError:
    pytest.skip("the extra ray is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def session() -> Iterator[Path]:
    """A Ray of two cores, for all tests of this module because it takes seconds to start; the folder of its session."""
    model = KLAutoencoder(block_out_channels=(8,), layers_per_block=1, norm_num_groups=4)
    before = {name: os.environ.get(name) for name in ray_engine._OWN_VARIABLES}
    with ray_engine._own_session(model) as options, pytest.MonkeyPatch.context() as patch:
        # By default Ray's workers have a nice value of 15, and tests that run beside these delay them by minutes.
        patch.setenv("RAY_worker_niceness", "0")
        assert Path(options["_temp_dir"]).name.startswith("ldm-ae-ray-")
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
        ray_engine.ray.init(address="local", num_cpus=2, logging_level="ERROR", **options)
        yield Path(options["_temp_dir"])
        ray_engine.ray.shutdown()
    assert {name: os.environ.get(name) for name in ray_engine._OWN_VARIABLES} == before
    assert not Path(options["_temp_dir"]).exists()


class Deadly(Wrapped):
    """Ends the process that asks for one of the images, the first time."""

    name = "deadly"

    def __init__(self, images: Path, index: int, marker: Path):
        super().__init__(open_source(images))
        self._index = index
        self._marker = marker

    def __getitem__(self, index: int) -> RawImage:
        if index == self._index and not self._marker.exists():
            self._marker.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return self._source[index]


@pytest.mark.slow
def test_killed_ray_worker_does_not_change_the_bytes(
    session: Path, tiny_model: KLAutoencoder, image_folder: Path, store: Path, tmp_path: Path
) -> None:
    encode_until(6, tiny_model, image_folder, tmp_path / "again")  # by this process
    assert recorded(tmp_path / "again") == SHARDS[:1]
    inode = (tmp_path / "again/32x32" / SHARDS[0]).stat().st_ino
    source = Deadly(image_folder, 7, tmp_path / "killed")
    seen: list[tuple[int, int]] = []
    summary = encode(
        tiny_model, image_folder, tmp_path / "again", source=source, engine=ray_engine.RayEngine(actors=2),
        progress=lambda *done: seen.append(done),
    )  # fmt: skip
    assert int((tmp_path / "killed").read_text()) != os.getpid()
    assert (summary.images, summary.already_complete) == (12, False)
    assert (tmp_path / "again/32x32" / SHARDS[0]).stat().st_ino == inode
    assert contents(tmp_path / "again") == contents(store)
    assert seen[-1] == (12, 12)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.slow
def test_messages_of_ray_workers_are_printed(
    session: Path, tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.no_grad():
        tiny_model.last_layer.fill_(1)
        next(tiny_model.parameters()).fill_(torch.nan)
    tiny_model.save_pretrained(tmp_path / "model")
    arguments = ["encode", str(tmp_path / "model"), str(image_folder), str(tmp_path / "store"), "--size", "32"]
    assert main([*arguments, "--engine", "ray", "--ray-actors", "1", "--workers", "0"]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ldm-ae")]
    assert len(told) == 1
    assert "latents of cats/001.png, cats/003.png, cats/005.png and 5 more is not finite" in told[0]
    assert not (tmp_path / "store/.lock").exists()
    ends = time.monotonic() + 20
    while ray_engine.ray.available_resources().get("CPU") != 2:  # the actor has gone
        assert time.monotonic() < ends
        time.sleep(0.1)


class FakeEngine:
    """Calls a function with the job, in this process."""

    def __init__(self, function: Callable[[Job], object]):
        self._function = function

    def check(self, device: str) -> None:
        """Any will do."""

    def __call__(self, job: Job, units: range, progress: object) -> None:
        self._function(job)


class FakeTally:
    """Answers at once, as `ray.get` is made to expect below."""

    def __init__(self, before: int):
        self._tally = ray_engine._Tally()
        for _ in range(before):
            self._tally.begin(0)

    def __getattr__(self, name: str) -> Any:
        return types.SimpleNamespace(remote=getattr(self._tally, name))


def actor(before: int, model: KLAutoencoder, images: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return an actor in this process, for a job whose first unit was started `before` times."""
    monkeypatch.setattr(ray_engine.ray, "get", lambda value: value)
    monkeypatch.setattr(writer, "_SECONDS_UNTIL_SEEN", 0)
    jobs: list[Job] = []
    with pytest.raises(RunError, match=r"holds 0 of 12"):
        encode(model, images, store, engine=FakeEngine(jobs.append))
    return ray_engine._Actor(jobs, FakeTally(before), "cpu")


@pytest.mark.slow
def test_lean_store_of_indices_has_float32_statistics(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine.ray, "get", lambda value: value)
    model = discrete()

    def run(job: Job) -> None:
        ours = ray_engine._Actor([job], FakeTally(0), "cpu")  # type: ignore[arg-type, list-item]
        assert [ours({"unit": [unit]})["error"] for unit in range(3)] == [[""]] * 3

    options = {"content": "lean", "precision": "bf16"}
    encode(model, image_folder, tmp_path / "store", engine=FakeEngine(run), **options)
    encode(model, image_folder, tmp_path / "local", **options)
    assert contents(tmp_path / "store") == contents(tmp_path / "local")


def test_unit_that_crashes_repeatedly_raises(
    tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "_exit", lambda status: sys.exit(status))
    ours = actor(3, tiny_model, image_folder, tmp_path / "store", monkeypatch)
    monkeypatch.setattr(ray_engine, "encode_units", lambda *_: 1 / 0)
    with pytest.raises(SystemExit):
        ours({"unit": [0]})
    assert ours({"unit": [0]}) == {
        "unit": [0],
        "error": ["RunError"],
        "message": ["file 0 of the store could not be encoded in 4 attempts: division by zero"],
    }
    killed = actor(4, tiny_model, image_folder, tmp_path / "killed", monkeypatch)
    assert "in 4 attempts: its process has ended" in killed({"unit": [0]})["message"][0]


def test_worker_without_access_to_the_store_raises(
    tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = actor(0, tiny_model, image_folder, tmp_path / "store", monkeypatch)
    ours._held = [dataclasses.replace(ours._held[0], path=tmp_path / "elsewhere")]
    found = ours({"unit": [0]})
    assert found["error"] == ["UserError"]
    assert f"cannot find {tmp_path / 'elsewhere'}" in found["message"][0]


@pytest.mark.parametrize(
    ("engine", "changes", "message"),
    [
        ({}, {}, "without a GPU, give the number of encoding processes: --ray-actors N"),
        ({"actors": 0}, {}, "it must be at least 1"),
        ({"actors": 1}, {"device": "cuda:1"}, "--device is cuda:1, but Ray assigns the GPUs"),
        ({"actors": 1}, {"processes": Processes(rank=0, count=2)}, "without torchrun or accelerate"),
    ],
)
def test_invalid_options_are_refused_before_ray_starts(
    engine: dict[str, Any], changes: dict[str, Any], message: str, tiny_model: KLAutoencoder, image_folder: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(ray_engine.ray, "init", None)
    monkeypatch.setattr(ray_engine.ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match=message):
        encode(tiny_model, image_folder, tmp_path / "store", engine=ray_engine.RayEngine(**engine), **changes)
    assert not (tmp_path / "store").exists()


def test_unreachable_cluster_is_refused(
    tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(address: str, **options: Any) -> None:
        assert options == {"logging_level": logging.ERROR}
        raise ConnectionError(f"Could not connect to {address}\nwith much more text")

    monkeypatch.setattr(ray_engine.ray, "init", refuse)
    monkeypatch.setattr(ray_engine.ray, "is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        there = f"127.0.0.1:{server.getsockname()[1]}"
    nobody = ray_engine.RayEngine(actors=1, address=there)
    with pytest.raises(RunError, match=f"no Ray cluster at {there}: .*refused"):
        encode(tiny_model, image_folder, tmp_path / "store", engine=nobody)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(RunError, match=r"no Ray cluster at auto: Could not connect to auto$"):
        encode(tiny_model, image_folder, tmp_path / "store", engine=ray_engine.RayEngine(actors=1))


def test_missing_ray_names_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "ldm_ae.latents.encoding.engines.ray")
    assert main(["encode", "model", "images", "store", "--engine", "ray"]) == 2
    assert capsys.readouterr().err == (
        "ldm-ae: error: --engine ray needs the package ray, which is missing; pip install 'ldm_ae[ray]'\n"
    )


def test_ray_options_without_the_ray_engine_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "model", "images", "store", "--ray-actors", "2"]) == 2
    assert capsys.readouterr().err == "ldm-ae: error: --ray-actors has no effect without --engine ray; remove it\n"
