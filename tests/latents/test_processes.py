"""Several processes on one store: every image once, and the same latents however many there are."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from ldm_ae.core import processes
from ldm_ae.core.errors import RunError, UserError
from ldm_ae.io.files import write_json
from ldm_ae.io.locks import LOCK
from ldm_ae.latents import LatentDataset, LatentStore, Processes, verify_store
from ldm_ae.latents.store import writer
from ldm_ae.latents.store.records import recorded
from ldm_ae.models import KLAutoencoder
from tests.latents.helpers import contents, encode
from tests.latents.test_resume import encode_until
from tests.training.processes import free_port, run_processes


class ThreadChannel:
    """Threads in place of processes, which take seconds to start; gloo has its own test below."""

    def __init__(self, count: int):
        self._barrier = threading.Barrier(count)
        self._said: Any = None
        self._votes: dict[int, bool] = {}

    def of(self, rank: int) -> Any:
        channel = self

        class Ours:
            def broadcast(self, value: Any) -> Any:
                if rank == 0:
                    channel._said = value
                channel._barrier.wait()
                said = channel._said
                channel._barrier.wait()  # before another word takes its place
                return said

            def all_agree(self, vote: bool) -> bool:
                votes = channel._votes
                votes[rank] = vote
                channel._barrier.wait()
                return all(votes.values())

            def wait_for_all(self) -> None:
                channel._barrier.wait()

        return Ours()


def encode_together(count: int, model: KLAutoencoder, images: Path, store: Path, **changes: Any) -> list[Any]:
    """Run `encode` as `count` processes and return the result of each."""
    shared = ThreadChannel(count)
    found: list[Any] = [None] * count

    class Threads(Processes):
        @contextmanager
        def connect(self) -> Iterator[Any]:
            yield shared.of(self.rank)

    def one(rank: int) -> None:
        try:
            found[rank] = encode(model, images, store, processes=Threads(rank=rank, count=count), **changes)
        except Exception as error:  # noqa: BLE001 - looked at by the test
            found[rank] = error
            shared._barrier.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def by_key(store: Path) -> dict[str, dict[str, torch.Tensor]]:
    data = LatentDataset(store)
    return {data[i]["key"]: data.tensors(i, data.tensor_names) for i in range(len(data))}


@pytest.mark.parametrize("count", [2, 3, 5])
def test_latents_do_not_depend_on_the_number_of_processes(
    count: int, tiny_model: KLAutoencoder, image_folder: Path, store: Path, tmp_path: Path
) -> None:
    summaries = encode_together(count, tiny_model, image_folder, tmp_path / "many")
    assert [(summary.images, summary.already_complete) for summary in summaries] == [(12, False)] * count
    assert verify_store(tmp_path / "many") == []
    one, many = by_key(store), by_key(tmp_path / "many")
    assert one.keys() == many.keys()
    for key, tensors in one.items():
        assert tensors.keys() == many[key].keys()
        assert all(torch.equal(tensor, many[key][name]) for name, tensor in tensors.items())
    shards = {2: ["00_shard000", "01_shard000", "01_shard001"], 3: ["00_shard000", "01_shard000", "02_shard000"],
              5: ["01_shard000", "03_shard000", "04_shard000"]}[count]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "many/32x32").glob("*.safetensors")) == [
        f"latents_rank{name}.safetensors" for name in shards
    ]
    # Merged from the shards' exact states in the order of the source, as one process does it.
    assert (tmp_path / "many/stats.json").read_bytes() == (store / "stats.json").read_bytes()
    tables = [pq.read_table(path / "index.parquet").drop_columns(["shard"]) for path in (store, tmp_path / "many")]
    assert tables[0].equals(tables[1])
    assert not (tmp_path / "many/.work").exists()
    assert not (tmp_path / "many" / LOCK).exists()


@pytest.mark.slow
def test_resuming_with_other_processes_keeps_shard_names(
    tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path
) -> None:
    encode_together(2, tiny_model, image_folder, tmp_path / "two")
    before = contents(tmp_path / "two")
    assert encode(tiny_model, image_folder, tmp_path / "two").already_complete
    assert all(summary.already_complete for summary in encode_together(3, tiny_model, image_folder, tmp_path / "two"))

    def stop(done: int, total: int) -> None:
        if done > 5:  # the first has one shard to do, the second two
            raise InterruptedError

    first, second = encode_together(2, tiny_model, image_folder, tmp_path / "again", progress=stop)
    assert isinstance(first, threading.BrokenBarrierError)
    assert isinstance(second, InterruptedError)
    assert [name.partition("_shard")[0] for name in recorded(tmp_path / "again")] == [
        "latents_rank00",
        "latents_rank01",
    ]
    assert not is_complete(tmp_path / "again")
    encode_together(3, tiny_model, image_folder, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "two") == before


def is_complete(path: Path) -> bool:
    try:
        LatentStore(path)
    except UserError:
        return False
    return True


def test_units_are_partitioned_among_processes(tmp_path: Path, tiny_model: KLAutoencoder, image_folder: Path) -> None:
    encode_until(12, tiny_model, image_folder, tmp_path / "store", shard_size=1)
    assert len(recorded(tmp_path / "store")) == 11
    plan = {"processes": 5, "run": "", "complete": False, "additions": [], "adds": False, "source": "images"}
    request = request_of(tmp_path / "store")
    five = writer.StoreWriter(tmp_path / "store", request, plan=plan)
    for count in (1, 2, 5, 12, 40):
        assert [unit for rank in range(count) for unit in five.share(rank, count)] == list(range(12))
    names = [five.shard_name(unit) for unit in range(12)]
    assert names == sorted(set(names))
    assert names[0] == "latents_rank00_shard000.safetensors"
    assert names[-1] == "latents_rank04_shard002.safetensors"


def request_of(path: Path) -> Any:
    from ldm_ae.latents.store.format import read_description, read_request

    return read_request(read_description(path)["request"])


def test_process_of_an_earlier_run_stops(tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path) -> None:
    def another(done: int, total: int) -> None:
        write_json(tmp_path / "store/.work/run.json", {"run": "another"})

    with pytest.raises(RunError, match=r"another run of this command is now writing .*store; this run ends"):
        encode(tiny_model, image_folder, tmp_path / "store", progress=another)
    assert recorded(tmp_path / "store") == []


def test_missing_files_of_other_processes_raise(
    tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_SECONDS_UNTIL_SEEN", 0)

    class Alone(Processes):
        @contextmanager
        def connect(self) -> Iterator[Any]:
            yield ThreadChannel(1).of(0)

    with pytest.raises(RunError, match="holds 5 of 12 images although every process has finished"):
        encode(tiny_model, image_folder, tmp_path / "store", processes=Alone(rank=0, count=2))


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2, WORLD_SIZE=2"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "must be numbers"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "MASTER_ADDR is not set"),
    ],
)
def test_invalid_distributed_environment_is_refused(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert Processes.from_environment() == Processes(rank=0, count=1, local_rank=0)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        Processes.from_environment()


def encode_or_die(rank: int, model: str, images: str, folder: str, port: int) -> None:
    from ldm_ae.models import load_autoencoder

    loaded = load_autoencoder(model)
    encode(loaded, Path(images), Path(folder) / "store", processes=Processes.from_environment())
    # On one port, a process may still find the other's address of the first connection, and is refused there.
    os.environ["MASTER_PORT"] = str(port)
    with Processes.from_environment().connect() as channel:
        assert channel.broadcast(f"said by {rank}") == "said by 0"
        if rank == 1:
            return  # without a word, as one that is killed
        started = time.monotonic()
        with pytest.raises(RunError, match="another process of this command has ended"):
            channel.wait_for_all()
        Path(folder, "seconds").write_text(str(time.monotonic() - started))


@pytest.mark.slow
def test_gloo_processes_share_a_store_and_detect_an_ended_peer(
    tiny_model_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    run_processes(encode_or_die, 2, str(tiny_model_folder), str(image_folder), str(tmp_path), free_port())
    assert verify_store(tmp_path / "store") == []
    assert len(LatentStore(tmp_path / "store")) == 12
    assert LatentStore(tmp_path / "store").good()["shard"].unique().to_pylist() == [
        f"latents_rank{name}.safetensors" for name in ("00_shard000", "01_shard000", "01_shard001")
    ]
    assert float((tmp_path / "seconds").read_text()) < 10
    assert processes._WAIT_TIMEOUT.total_seconds() > 3600
