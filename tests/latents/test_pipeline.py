"""The encoding pipeline: compiled encoders, the writer thread, and its failures."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm_ae.core.background import BackgroundWriter
from ldm_ae.core.errors import RunError, UserError
from ldm_ae.data import BucketTransform
from ldm_ae.io.files import write_json
from ldm_ae.latents import LatentDataset, LatentStore, verify_store
from ldm_ae.latents.encoding import encoder, units
from ldm_ae.latents.encoding.transfers import Transfers
from ldm_ae.latents.store.format import DESCRIPTION, read_description
from ldm_ae.latents.store.records import recorded
from ldm_ae.latents.store.writer import StoreWriter
from ldm_ae.models import KLAutoencoder, hash_json
from tests.latents.helpers import contents, encode
from tests.latents.test_resume import encode_until


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the pixels for which a graph was compiled; it runs as it is, which takes no compiler."""
    shapes: list[tuple[int, ...]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        shapes.extend(tuple(value.shape) for value in inputs if value.shape[1:2] == (3,) and value.shape[-1] > 3)
        return graph.forward

    def compile_parts(model: KLAutoencoder, *, for_training: bool = False) -> None:
        model.net.encoder.compile(backend=backend)

    torch._dynamo.reset()
    monkeypatch.setattr(KLAutoencoder, "compile_parts", compile_parts)
    return shapes


def latents(store: Path) -> dict[str, Tensor]:
    data = LatentDataset(store)
    return {data[i]["key"]: data.read(i) for i in range(len(data))}


@pytest.mark.slow
def test_compiled_encoder_has_one_shape_per_size_and_resumes_exactly(
    graphs: list[tuple[int, ...]], image_folder: Path, tmp_path: Path
) -> None:
    model = KLAutoencoder(  # tracing takes its time for each layer
        block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, mid_block_add_attention=False
    )
    # Shards of five in batches of four: most batches are not full.
    options: dict[str, Any] = dict(batch_size=4, transform=BucketTransform([(32, 32), (48, 32)]))
    encode(model, image_folder, tmp_path / "plain", **options)
    assert graphs == []
    options |= {"compiled": True}
    encode(model, image_folder, tmp_path / "compiled", **options)
    assert sorted(graphs) == [(4, 3, 32, 32), (4, 3, 48, 32)]
    plain, compiled = latents(tmp_path / "plain"), latents(tmp_path / "compiled")
    assert plain.keys() == compiled.keys()
    for key, expected in plain.items():
        # Another batch size reorders float32 sums.
        torch.testing.assert_close(compiled[key], expected, atol=1e-5, rtol=1e-5)
    assert verify_store(tmp_path / "compiled") == []
    assert LatentStore(tmp_path / "compiled").request.compiled
    with pytest.raises(UserError, match=r"made with compiled true \(now false\)"):
        encode(model, image_folder, tmp_path / "compiled", **(options | {"compiled": False}))
    encode_until(7, model, image_folder, tmp_path / "again", **options)
    torch._dynamo.reset()
    graphs.clear()
    encode(model, image_folder, tmp_path / "again", **options)
    assert len(graphs) == len(set(graphs)) > 0
    assert contents(tmp_path / "again") == contents(tmp_path / "compiled")


def test_store_written_before_compile_existed_is_complete(
    tiny_model: KLAutoencoder, image_folder: Path, store: Path
) -> None:
    content = read_description(store)
    for name in ("compiled", "content"):
        del content["request"][name]
    write_json(store / DESCRIPTION, content | {"checksum": hash_json(content)})
    assert encode(tiny_model, image_folder, store).already_complete
    assert verify_store(store) == []


def test_next_shard_is_encoded_during_a_write(
    tiny_model: KLAutoencoder, image_folder: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    went_on = threading.Event()
    original = StoreWriter.add_unit
    threads: list[str] = []

    def slow(self: StoreWriter, unit: int, *rest: Any, **more: Any) -> None:
        threads.append(threading.current_thread().name)
        assert unit or went_on.wait(30), "nothing was encoded while the first shard was written"
        original(self, unit, *rest, **more)

    def watch(done: int, total: int) -> None:
        if done > 5:  # the first shard holds five images, and has no record yet
            went_on.set()

    monkeypatch.setattr(StoreWriter, "add_unit", slow)
    encode(tiny_model, image_folder, tmp_path / "slow", progress=watch)
    assert all(name.startswith("writer") for name in threads)
    assert contents(tmp_path / "slow") == contents(store)


def test_next_batch_is_submitted_before_results_are_awaited(
    tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    original = encoder._encode_batch

    def encode_batch(model: Any, batch: Any, *rest: Any) -> Any:
        events.append(f"model {int(batch.indices[0])}")
        return original(model, batch, *rest)

    def download(self: Transfers, tensors: dict[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
        number = events[-1].partition(" ")[2]

        def wait() -> dict[str, Tensor]:
            events.append(f"wait {number}")
            return tensors

        return wait

    monkeypatch.setattr(encoder, "_encode_batch", encode_batch)
    monkeypatch.setattr(Transfers, "download", download)
    encode(tiny_model, image_folder, tmp_path / "store")
    firsts = [0, 3, 5, 8, 10]  # batches of three in shards of five
    expected = ["model 0"]
    for before, after in itertools.pairwise(firsts):
        expected += [f"model {after}", f"wait {before}"]
    assert events == [*expected, "wait 10"]


def test_full_disk_in_the_writer_stops_the_run(
    tiny_model: KLAutoencoder, image_folder: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = StoreWriter.add_unit

    def full(self: StoreWriter, unit: int, *rest: Any, **more: Any) -> None:
        if unit == 1:
            raise RunError("the disk is full")
        original(self, unit, *rest, **more)

    monkeypatch.setattr(StoreWriter, "add_unit", full)
    with pytest.raises(RunError, match="the disk is full"):
        encode(tiny_model, image_folder, tmp_path / "again")
    assert recorded(tmp_path / "again") == ["latents_rank00_shard000.safetensors"]
    monkeypatch.undo()
    encode(tiny_model, image_folder, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(store)


def test_failed_write_is_raised_before_the_next_shard(
    tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def fail(self: units.Unit, *rest: Any) -> None:
        failed.set()
        raise RunError("no room")

    seen: list[int] = []

    def watch(done: int, total: int) -> None:
        seen.append(done)
        if done > 5:
            assert failed.wait(30)
            time.sleep(0.2)  # until the thread has reported it

    monkeypatch.setattr(units.Unit, "write", fail)
    with pytest.raises(RunError, match="no room"):
        encode(tiny_model, image_folder, tmp_path / "store", progress=watch)
    assert seen in ([3, 5], [3, 5, 8])


def test_pending_write_is_completed_when_the_run_stops(
    tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = threading.Event()
    original = units.Unit.write

    def late(self: units.Unit, *rest: Any) -> None:
        assert stopped.wait(30)
        original(self, *rest)

    def stop(done: int, total: int) -> None:
        if done > 5:
            stopped.set()
            raise KeyboardInterrupt

    monkeypatch.setattr(units.Unit, "write", late)
    with pytest.raises(KeyboardInterrupt):
        encode(tiny_model, image_folder, tmp_path / "store", progress=stop)
    # The folder is given back after that: nobody else finds a file that is still being written.
    assert recorded(tmp_path / "store") == ["latents_rank00_shard000.safetensors"]


def test_writer_failure_during_another_exception_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RunError("no room")

    with pytest.raises(KeyboardInterrupt), BackgroundWriter() as writer:
        writer.submit(fail)
        raise KeyboardInterrupt
    assert caplog.messages == ["no room"]
    with pytest.raises(RunError, match="no room"), BackgroundWriter() as writer:
        writer.submit(fail)
